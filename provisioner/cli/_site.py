"""What the provisioner's commands share: opening the site, asking yes or no, naming what matched nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from capsulekit.cli.main import Options
from capsulekit.errors import CapsulekitError, printable

if TYPE_CHECKING:
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry

# Names of one kind that an error lists at most, and letters of one of them: a slip may be as long as it likes.
MOST_NAMED = 20
LONGEST_NAMED = 80


def open_site(options: Options) -> Registry:
    """The site's registry. Where the site was never initialised, a person at a terminal is offered ``init``."""
    from provisioner.registry.history import Actor
    from provisioner.registry.registry import open_registry
    from provisioner.siteconf import NotInitialised

    try:
        registry = open_registry(options.paths)
    except NotInitialised as error:
        if options.yes or options.quiet or not sys.stdin.isatty() or not sys.stdout.isatty():
            raise
        if not confirm(options, f"{error.message[0].upper()}{error.message[1:]}. Do that now?"):
            raise
        from provisioner.cli.init import init_asking
        from provisioner.initsite import InitRequest

        init_asking(options, InitRequest())
        registry = open_registry(options.paths)
    context = click.get_current_context(silent=True)
    # "node set" of "capsulekit node set": what history says who changed a thing with.
    registry.actor = Actor(who(), context.command_path.partition(" ")[2] if context else "")
    return registry


def who() -> str:
    """The login of the person behind this command: behind sudo, if it was used. A number where it has no name."""
    if os.geteuid() == 0 and os.environ.get("SUDO_USER"):
        return os.environ["SUDO_USER"]
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


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
    """Tell people what was done, unless --quiet; with --json stdout is for the record alone."""
    if not options.quiet and not options.json:
        click.echo(printable(text))


def tell(options: Options, lines: Sequence[str], record: Mapping[str, Any]) -> None:
    """Tell what was done: lines for people, unless --quiet; with --json the record, whatever else was said."""
    if options.json:
        from capsulekit.output import emit_json

        emit_json(dict(record))
    elif lines and not options.quiet:
        click.echo("\n".join(map(printable, lines)))


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


def complain(unmatched: Sequence[str], kind: str = "node") -> None:
    """After printing what matched: raise CapsulekitError (exit 1) for the rest, if there is any."""
    if unmatched:
        sys.stdout.flush()
        raise CapsulekitError(no_such(unmatched, kind))


def no_such(unmatched: Sequence[str], kind: str = "node") -> str:
    """One line naming what matched no node; a long list is cut, and so is a long word."""
    more = f" and {len(unmatched) - MOST_NAMED} more" if len(unmatched) > MOST_NAMED else ""
    return f"no {kind} matches " + ", ".join(_quoted(word) for word in unmatched[:MOST_NAMED]) + more


def roles_record(left: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What a record says of (module, role) pairs whose name is gone; nothing where there are none."""
    return {"roles_left": [{"module": module, "role": role} for module, role in left]} if left else {}


def warn_of_roles(left: Sequence[tuple[str, str]]) -> None:
    """Say which activations are about a name that nothing has any more: what gets the name next gets them too."""
    for module, role in left:
        text = f"WARNING: module {module!r} stays activated in {role}, a name that nothing has now; "
        click.echo(text + f"capsulekit module deactivate {module} {role}", err=True)


def matching(words: Sequence[str], known: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the known names that the words name, sorted; all without words. The words that name none)"""
    from provisioner.registry.selectors import select_names

    names = sorted(known)
    selection = select_names(words or ["*"] * bool(names), names)
    return selection.names, selection.unmatched


def count(number: int, what: str = "node") -> str:
    """ "1 node", "5 nodes"."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _quoted(word: str) -> str:
    return repr(word if len(word) <= LONGEST_NAMED else word[:LONGEST_NAMED] + "…")
