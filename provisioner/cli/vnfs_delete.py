"""``capsulekit vnfs delete``: capsules nobody needs any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._site import confirm, roles_record, tell, warn_of_roles
from provisioner.cli._vnfs import DRY_RUN, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.registry.model import InstalledCapsule
    from provisioner.vnfs.remove import Deleted, KeptFor
    from provisioner.vnfs.store import VnfsStore


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=capsule_names)
@click.option("--generation", "-g", "generations", multiple=True, metavar="N",
              help="Only this generation: its number, or the beginning of its identity; more than once.")  # fmt: skip
@click.option("--keep", type=click.IntRange(min=0), metavar="N",
              help="Only older generations, all but the newest N of them.")  # fmt: skip
@click.option("--force", is_flag=True, help="Also what nodes boot: they wait at their boot screen then.")
@DRY_RUN
@click.pass_obj
def cli(
    options: Options, names: tuple[str, ...], generations: tuple[str, ...], keep: int | None, force: bool, dry_run: bool
) -> None:
    """Delete installed capsules, after asking, with every blob that no other capsule has.

    With --generation or --keep the capsules stay, with what nodes boot and what was imported; older generations go.
    What a node was told to boot last stays in the store until it boots something else.
    """
    with opened_store(options) as store:
        chosen = list({one.name: one for one in (store.get(name) for name in names)}.values())
        if generations or keep is not None:
            _some(options, store, chosen, _named(store, chosen, generations, keep), dry_run, by_age=not generations)
        else:
            _whole(options, store, chosen, force=force, dry_run=dry_run)


def _whole(options: Options, store: VnfsStore, chosen: list[InstalledCapsule], *, force: bool, dry_run: bool) -> None:
    """Delete capsules."""
    from provisioner.vnfs.remove import delete, generations_of, kept_for, refuse_edited, refuse_used, roles_left

    names = [one.name for one in chosen]
    refuse_edited(store, names)
    if not force:
        for name in names:
            refuse_used(store, name)
    listed = [_line(store, one) for one in chosen]
    left = roles_left(store, names)
    if dry_run:
        _tried(options, listed, {"deleted": names} | roles_record(left), kept_for(store, generations_of(store, names)))
        return
    _ask(options, listed, f"Delete {len(chosen)} of the capsules?")
    done = delete(store, names, used=force)
    lines = [f"{name} has been deleted" for name in names]
    tell(options, [*lines, *_said(done)], {"deleted": names, **_record(done)} | roles_record(left))
    warn_of_roles(left)


def _named(
    store: VnfsStore, chosen: list[InstalledCapsule], generations: tuple[str, ...], keep: int | None
) -> dict[str, tuple[str, ...]]:
    """Identities of the generations to delete by installed name."""
    from capsulekit.errors import UsageError
    from provisioner.vnfs.remove import older_generations
    from provisioner.vnfs.rollback import find_generation

    if generations and (keep is not None or len(chosen) != 1):
        raise UsageError("--generation is for one capsule, and not together with --keep")
    if keep is not None:
        return {one.name: older_generations(store, one.name, keep) for one in chosen}
    found = [find_generation(store, chosen[0].name, word).identity for word in generations]
    return {chosen[0].name: tuple(dict.fromkeys(found))}


def _some(
    options: Options,
    store: VnfsStore,
    chosen: list[InstalledCapsule],
    named: dict[str, tuple[str, ...]],
    dry_run: bool,
    *,
    by_age: bool,
) -> None:
    """Delete generations; ``by_age``: not those that the user has named, but older ones."""
    from provisioner.vnfs.remove import check_deletable, delete_generations, kept_for

    for one in chosen:
        check_deletable(store, one.name, named[one.name], by_age=by_age)
    listed = [_older(store, name, identity) for name, identities in named.items() for identity in identities]
    record = {"generations": {name: list(identities) for name, identities in named.items()}}
    if not listed:
        # A deletion that was killed is finished all the same.
        freed = 0 if dry_run else delete_generations(store, {}).freed
        told = record | {"freed": freed, "kept": [], "dry_run": dry_run}
        tell(options, ["No older generation is to be deleted"], told)
        return
    if dry_run:
        _tried(options, listed, record, kept_for(store, named))
        return
    _ask(options, listed, f"Delete {len(listed)} of the generations?")
    done = delete_generations(store, named, by_age=by_age)
    tell(options, [f"{line} has been deleted" for line in listed] + _said(done), record | _record(done))


def _ask(options: Options, listed: list[str], question: str) -> None:
    if not (options.yes and options.quiet):
        click.echo("\n".join(f"To be deleted: {line}" for line in listed), err=True)
    if not confirm(options, question):
        raise click.Abort


def _line(store: VnfsStore, one: InstalledCapsule) -> str:
    from provisioner.vnfs.remove import size_of

    nodes = store.registry.nodes_of_capsule(one.name)
    used = f", booted by {len(nodes)} nodes" if nodes else ""
    return f"{one.name} ({size_of(store, one) / 1e6:.1f} MB{used})"


def _older(store: VnfsStore, name: str, identity: str) -> str:
    number = max(past.number for past in store.history(name) if past.identity == identity)
    return f"generation {number} of {name} ({identity[:16]}…)"


def _tried(options: Options, listed: list[str], record: Mapping[str, object], kept: tuple[KeptFor, ...]) -> None:
    """What --dry-run says."""
    lines = [f"Would be deleted: {line}" for line in listed]
    told = {"freed": 0, "kept": [asdict(one) for one in kept], "dry_run": True}
    tell(options, lines + [f"Would be {_kept(one)}" for one in kept], {**record, **told})


def _said(done: Deleted) -> list[str]:
    return [*map(_kept, done.kept), f"{done.freed / 1e6:.1f} MB were freed"]


def _kept(one: KeptFor) -> str:
    return f"kept until they boot something else, for {_nodes(one.nodes)}: {one.name} {one.identity[:16]}…"


def _nodes(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _record(done: Deleted) -> dict[str, object]:
    return {"freed": done.freed, "kept": [asdict(one) for one in done.kept], "dry_run": False}
