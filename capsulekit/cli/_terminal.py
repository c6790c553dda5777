"""What a command asks at the terminal: passwords of keys, and yes or no."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.errors import UsageError

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


def variables_of(settings: Sequence[str]) -> dict[str, str]:
    """The variables of --set NAME=VALUE. Raises UsageError for another form, or a name given twice."""
    found: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not {setting!r}")
        if name in found:
            raise UsageError(f"--set names the variable {name} twice")
        found[name] = value
    return found


def key_password(path: Path) -> Callable[[], bytes]:
    """Asks for the password of a secret key once it turns out to have one. Raises UsageError without a terminal."""

    def ask() -> bytes:
        if not sys.stdin.isatty():
            raise UsageError(f"the key {path} has a password and there is no terminal to ask for it")
        word: str = click.prompt(f"Password of {path}", hide_input=True, err=True)
        return word.encode()

    return ask


def new_password(path: Path) -> bytes:
    """A password for a new key, asked twice. Raises UsageError without a terminal."""
    if not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask for a password",
            hint=f"for a key without one: capsulekit keygen {path} --no-password",
        )
    word: str = click.prompt(f"Password for {path}", hide_input=True, confirmation_prompt="Again", err=True)
    return word.encode()


def confirm(options: Options, question: str) -> bool:
    """The answer to a yes/no question: -y and -n answer it, and the end of input means no."""
    if options.yes or options.no:
        return options.yes and not options.no
    while True:
        click.echo(f"{question} [yes/no]> ", nl=False, err=True)
        answer = sys.stdin.readline()
        if not answer:
            click.echo(err=True)
            return False
        if answer.strip().lower() in ("yes", "y", "no", "n"):
            return answer.strip().lower().startswith("y")
