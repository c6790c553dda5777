"""The command that ``capsulekit mount`` and ``capsulekit vnfs mount`` both are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._edit import AT, NO_BLOCK, PUBKEY, editing
from provisioner.cli._vnfs import DRY_RUN

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.edit import Mounted


@click.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=capsule_names)
@AT
@click.option("--chroot", is_flag=True, help="With /proc, /sys, /dev, /run and resolv.conf in it, ready for chroot.")
@NO_BLOCK
@PUBKEY
@DRY_RUN
@click.pass_obj
def cli(
    options: Options, name: str, at: Path | None, chroot: bool, no_block: bool, pubkeys: tuple[Path, ...], dry_run: bool
) -> None:
    """Mount an installed capsule, or a capsule file, for editing. Nothing of it is unpacked.

    What is changed becomes the next generation with umount, and is discarded with close. Until then nodes that boot it
    wait. An edit that a restart of the machine has interrupted is gone on with.
    """
    from provisioner.cli._site import tell
    from provisioner.vnfs.edit import mount

    with editing(options, name) as editor:
        done = mount(editor, name, at=at, chroot=chroot, blocking=not no_block, pubkeys=pubkeys, dry_run=dry_run)
    record = done.record
    tell(options, _lines(done, name), {
        "name": record.name, "at": record.at, "base": record.base, "who": record.who, "since": record.since,
        "blocking": record.blocking, "file": record.file, "chroot": bool(record.bound), "resumed": bool(done.resumed),
        "dry_run": done.dry_run,
    })  # fmt: skip


def _lines(done: Mounted, name: str) -> list[str]:
    """Where it is, and what to do next."""
    record = done.record
    if done.dry_run:
        return [f"{record.name} would be mounted at {record.at}"]
    bound = "" if record.bound else " (for /proc, /dev and the network's names: mount it with --chroot)"
    lines = [f"{record.name} is mounted at {record.at}"]
    lines += [done.resumed] if done.resumed else []
    lines += [
        f"  work in it:        chroot {record.at}{bound}",
        f"  keep the changes:  capsulekit umount {name}",
        f"  discard them:      capsulekit close {name}",
    ]
    if not record.file:
        waits = "wait until then" if record.blocking else "take the last generation meanwhile"
        lines.append(f"Nodes that boot it {waits}.")
    return lines
