"""``capsulekit node replace``: new hardware takes the place of old."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from capsulekit.errors import CapsulekitError, UsageError
from provisioner.cli._complete import node_names
from provisioner.cli._site import chosen_for_change, confirm, open_site, tell

if TYPE_CHECKING:
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry


@click.command()
@click.argument("old", shell_complete=node_names)
@click.argument("new", shell_complete=node_names)
@click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")
@click.pass_obj
def cli(options: Options, old: str, new: str, dry_run: bool) -> None:
    """Give the name and settings of OLD to the machine that joined as NEW, after asking.

    OLD's own machine is forgotten, and so is the entry NEW made when it joined.
    """
    registry = open_site(options)
    before, after = _one(registry, options, old), _one(registry, options, new)
    if before.nodeid == after.nodeid:
        raise CapsulekitError(f"{old!r} and {new!r} are the same node; nothing was changed")
    if not dry_run:
        if not (options.yes and options.quiet):
            click.echo(
                f"To be forgotten: the machine {before.nodeid} and the name {after.name!r}; "
                f"{before.name!r} will be {after.nodeid}",
                err=True,
            )
        if not confirm(options, f"Replace {before.hostname}?"):
            raise click.Abort
    with registry.db.rehearsal(dry_run):
        registry.replace_node(before.nodeid, after.nodeid)
    lines = [f"Node {before.hostname!r} {'would be' if dry_run else 'has been'} replaced: it is {after.nodeid} now"]
    record = {"hostname": before.hostname, "old": before.nodeid, "new": after.nodeid, "dry_run": dry_run}
    tell(options, lines, record)


def _one(registry: Registry, options: Options, word: str) -> Node:
    """The one node that ``word`` names. Raises CapsulekitError for none, UsageError for several."""
    chosen = chosen_for_change(registry, options, [word])
    if len(chosen) != 1:
        raise UsageError(f"{word!r} names {len(chosen)} nodes: replace takes one old and one new")
    return chosen[0]
