"""``capsulekit vnfs rebuild``: what follows from today's site and capsulekit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import DRY_RUN, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", shell_complete=capsule_names)
@DRY_RUN
@click.pass_obj
def cli(options: Options, name: str, dry_run: bool) -> None:
    """Make anew what follows from this site's hybridize list and this capsulekit: hybrid layer and initrd of NAME.

    Nothing else of it changes; where all is as it would be made today, nothing does.
    """
    from provisioner.cli._site import tell
    from provisioner.vnfs.kernel import rebuild

    with opened_store(options) as store:
        done = rebuild(store, name, dry_run=dry_run)
    lines = list(done.lines)
    if done.changed:
        what = "would be rebuilt" if dry_run else "has been rebuilt"
        lines.append(f"{done.capsule.name} {what} (identity={done.capsule.identity})")
    tell(options, lines, {"name": done.capsule.name, "identity": done.capsule.identity, "changed": done.changed,
                          "lines": list(done.lines), "dry_run": dry_run})  # fmt: skip
