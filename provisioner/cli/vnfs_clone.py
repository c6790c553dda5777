"""``capsulekit vnfs clone``: the same capsule under another name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import DRY_RUN, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", shell_complete=capsule_names)
@click.argument("new")
@DRY_RUN
@click.pass_obj
def cli(options: Options, name: str, new: str, dry_run: bool) -> None:
    """Install NAME as NEW too. Both share their blobs; nodes go on booting what they booted."""
    from dataclasses import asdict

    from provisioner.cli._site import tell
    from provisioner.vnfs.clone import clone

    with opened_store(options) as store:
        made = clone(store, name, new, dry_run=dry_run)
    what = "would be cloned" if dry_run else "has been cloned"
    tell(options, [f"{name} {what} as {made.name}"], {"capsule": asdict(made), "dry_run": dry_run})
