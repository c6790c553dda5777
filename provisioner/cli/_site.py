"""What the provisioner's commands share: opening the site, asking yes or no, naming what matched nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from capsulekit.errors import CapsulekitError

if TYPE_CHECKING:
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry


def open_site(options: Options) -> Registry:
    """The site's registry. Where the site was never initialised, a person at a terminal is offered ``init``."""
    from provisioner.registry.registry import open_registry
    from provisioner.siteconf import NotInitialised

    try:
        return open_registry(options.paths)
    except NotInitialised as error:
        if options.yes or options.quiet or not sys.stdin.isatty() or not sys.stdout.isatty():
            raise
        if not confirm(options, f"{error.message[0].upper()}{error.message[1:]}. Do that now?"):
            raise
        from provisioner.cli.init import init_asking
        from provisioner.initsite import InitRequest

        init_asking(options, InitRequest())
        return open_registry(options.paths)


def confirm(options: Options, question: str) -> bool:
    """Ask [yes/no] on stdin; -y and -n answer, end of input means no."""
    if options.yes or options.no:
        return options.yes and not options.no
    while True:
        click.echo(f"{question} [yes/no]> ", nl=False, err=True)
        answer = sys.stdin.readline()
        if not answer:
            click.echo(err=True)
            return False
        if answer.strip().lower() in ("yes", "y"):
            return True
        if answer.strip().lower() in ("no", "n"):
            return False


def say(options: Options, text: str) -> None:
    """Tell what was done, unless --quiet."""
    if not options.quiet:
        click.echo(text)


def chosen_for_change(registry: Registry, options: Options, words: Sequence[str]) -> tuple[Node, ...]:
    """The nodes to change; raises CapsulekitError naming every argument that matched nothing."""
    selection = registry.select(words, by_mac=options.nodeid)
    if selection.unmatched:
        raise CapsulekitError(no_such(selection.unmatched) + "; nothing was changed", hint="see: capsulekit node list")
    return selection.nodes


def chosen_for_reading(
    registry: Registry, options: Options, words: Sequence[str]
) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The nodes to print, all of them when no words are given, and what matched nothing."""
    if not words:
        return tuple(registry.nodes()), ()
    selection = registry.select(words, by_mac=options.nodeid)
    return selection.nodes, selection.unmatched


def complain(unmatched: Sequence[str]) -> None:
    """After printing what matched: raise CapsulekitError (exit 1) for the rest, if there is any."""
    if unmatched:
        sys.stdout.flush()
        raise CapsulekitError(no_such(unmatched))


def no_such(unmatched: Sequence[str]) -> str:
    """One line naming what matched no node; a long list is cut."""
    more = f" and {len(unmatched) - 20} more" if len(unmatched) > 20 else ""
    return "no node matches " + ", ".join(repr(word) for word in unmatched[:20]) + more
