"""``capsulekit vnfs delete``: capsules nobody needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._site import confirm, roles_record, tell, warn_of_roles
from provisioner.cli._vnfs import DRY_RUN, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.registry.model import InstalledCapsule
    from provisioner.vnfs.store import VnfsStore


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=capsule_names)
@click.option("--force", is_flag=True, help="Also what nodes boot: they wait at their boot screen then.")
@DRY_RUN
@click.pass_obj
def cli(options: Options, names: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Delete installed capsules, after asking, with every blob that no other capsule has."""
    from provisioner.vnfs.remove import delete, refuse_used, roles_left

    with opened_store(options) as store:
        chosen = list({one.name: one for one in (store.get(name) for name in names)}.values())
        if not force:
            for one in chosen:
                refuse_used(store, one.name)
        listed = [_line(store, one) for one in chosen]
        left = roles_left(store, [one.name for one in chosen])
        if dry_run:
            tell(options, [f"Would be deleted: {line}" for line in listed], _record(chosen, 0, left, dry_run))
            return
        if not (options.yes and options.quiet):
            click.echo("\n".join(f"To be deleted: {line}" for line in listed), err=True)
        if not confirm(options, f"Delete {len(chosen)} of the capsules?"):
            raise click.Abort
        freed = delete(store, [one.name for one in chosen], used=force)
    lines = [f"{one.name} has been deleted" for one in chosen]
    tell(options, [*lines, f"{freed / 1e6:.1f} MB were freed"], _record(chosen, freed, left, dry_run))
    warn_of_roles(left)


def _line(store: VnfsStore, one: InstalledCapsule) -> str:
    from provisioner.vnfs.remove import size_of

    nodes = store.registry.nodes_of_capsule(one.name)
    used = f", booted by {len(nodes)} nodes" if nodes else ""
    return f"{one.name} ({size_of(store, one) / 1e6:.1f} MB{used})"


def _record(
    chosen: list[InstalledCapsule], freed: int, left: list[tuple[str, str]], dry_run: bool
) -> dict[str, object]:
    return {"deleted": [one.name for one in chosen], "freed": freed, "dry_run": dry_run} | roles_record(left)
