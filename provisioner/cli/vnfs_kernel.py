"""``capsulekit vnfs kernel``: another kernel for an installed capsule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import DRY_RUN, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", shell_complete=capsule_names)
@click.option(
    "--from",
    "sources",
    metavar="PACKAGE|CAPSULE",
    multiple=True,
    required=True,
    help="A kernel package (.deb, .rpm; again for each that belongs to it), a capsule file, or a capsule's name.",
)
@click.option(
    "--move-modules",
    is_flag=True,
    help="Move modules that an edit put into another kernel's folder to the new one's.",
)
@DRY_RUN
@click.pass_obj
def cli(options: Options, name: str, sources: tuple[str, ...], move_modules: bool, dry_run: bool) -> None:
    """Give NAME another kernel: its image, its modules layer and its initrd; the root layers stay as they are.

    Nodes get it at their next boot, and vnfs rollback takes it back.
    """
    from provisioner.cli._site import tell
    from provisioner.vnfs.kernel import swap_kernel

    with opened_store(options) as store:
        done = swap_kernel(store, name, sources, move=move_modules, dry_run=dry_run)
    lines = list(done.lines)
    if done.changed:
        what = "would get" if dry_run else "has"
        lines.append(f"{done.capsule.name} {what} the kernel {done.new} (identity={done.capsule.identity})")
    tell(options, lines, {"name": done.capsule.name, "identity": done.capsule.identity, "changed": done.changed,
                          "old": done.old, "new": done.new, "lines": list(done.lines), "dry_run": dry_run})  # fmt: skip
