"""``capsulekit vnfs``: the capsules that are installed at this site."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from capsulekit.cli.main import Group, Options
from capsulekit.errors import CapsulekitError
from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import opened_store

if TYPE_CHECKING:
    from provisioner.registry.model import InstalledCapsule
    from provisioner.vnfs.store import VnfsStore


@click.group("vnfs", cls=Group)
def cli() -> None:
    """Installed capsules: import, configure, export, clone, verify, roll back and delete them."""


@cli.command(name="list")
@click.argument("names", nargs=-1, shell_complete=capsule_names)
@click.pass_obj
def list_(options: Options, names: tuple[str, ...]) -> None:
    """The names of the installed capsules; with -v also version, key, time, size, nodes, identity and edits."""
    with opened_store(options) as store:
        capsules, wrong = _chosen(store, names)
        rows = [_row(store, one) for one in capsules] if options.json or options.verbose else []
    if options.json:
        from capsulekit.output import emit_json

        emit_json(rows)
    elif options.verbose:
        import time

        from capsulekit.output import table

        columns = [("VNFS", 36), ("Version", 12), ("Key", 16), ("Imported (UTC)", 19), ("Size", 10), ("Nodes", 6)]
        lines = []
        for row in rows:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["imported"]))
            size, nodes = f"{row['size'] / 1e6:.1f} MB", str(len(row["nodes"]))
            lines.append((row["name"], row["version"], row["key_id"], when, size, nodes, row["identity"]))
        click.echo(table([*columns, ("Identity", 64)], lines))
        for row in rows:
            if row["mounted"]:
                click.echo(row["mounted"]["told"])
    else:
        for one in capsules:
            click.echo(one.name)
    if wrong:
        sys.stdout.flush()
        raise CapsulekitError(wrong[0].message, hint=wrong[0].hint, details=tuple(one.message for one in wrong[1:]))


def _chosen(store: VnfsStore, names: Sequence[str]) -> tuple[list[InstalledCapsule], list[CapsulekitError]]:
    """(the capsules of these names, all without any; what is wrong with the other names)"""
    if not names:
        return store.list(), []
    found: list[InstalledCapsule] = []
    wrong: list[CapsulekitError] = []
    for name in names:
        try:
            found.append(store.get(name))
        except CapsulekitError as error:
            wrong.append(error)
    return found, wrong


def _row(store: VnfsStore, one: InstalledCapsule) -> dict[str, Any]:
    """A capsule's row, its bytes in the store, the nodes that boot it, and by whom it is mounted for editing."""
    from dataclasses import asdict

    from provisioner.vnfs.edits import mounted
    from provisioner.vnfs.remove import size_of

    nodes, edit = store.registry.nodes_of_capsule(one.name), mounted(store.paths, one.name)
    return {**asdict(one), "size": size_of(store, one), "nodes": nodes, "mounted": edit}
