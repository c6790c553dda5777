"""Every command of the tree, found as the program finds them: nobody has to name a new one here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from capsulekit.cli.main import root


@dataclass(frozen=True)
class Found:
    """A command and the words that call it."""

    words: tuple[str, ...]
    command: click.Command

    def __str__(self) -> str:
        return "-".join(self.words)

    @property
    def arguments(self) -> list[click.Argument]:
        return [one for one in self.command.params if isinstance(one, click.Argument)]

    @property
    def valued(self) -> list[click.Option]:
        """The options that take a value."""
        options = [one for one in self.command.params if isinstance(one, click.Option)]
        return [one for one in options if not one.is_flag and not one.count]


def commands(group: click.Group = root, words: tuple[str, ...] = ()) -> Iterator[Found]:  # type: ignore[assignment]
    """Groups and the commands in them, depth first."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, (*words, name)
        yield Found((*words, name), command)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


def leaves() -> list[Found]:
    """The commands that do something."""
    return [one for one in commands() if not isinstance(one.command, click.Group) or one.command.invoke_without_command]
