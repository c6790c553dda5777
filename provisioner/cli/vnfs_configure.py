"""``capsulekit vnfs configure``: a capsule's questions, asked again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import ANSWERS, DRY_RUN, asking, opened_store, warn_of_edit

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", shell_complete=capsule_names)
@ANSWERS
@DRY_RUN
@click.pass_obj
def cli(options: Options, name: str, answers: Path | None, dry_run: bool) -> None:
    """Ask the questions of NAME again; the answers become a private layer, signed by the site's key.

    The last answers are the defaults, and a single "-" takes one away. Nodes get the new layer at their next boot.
    """
    from provisioner.cli._site import tell
    from provisioner.vnfs.configure import configure

    with opened_store(options) as store:
        done = configure(store, name, asking(options, answers), dry_run=dry_run)
    what = ("would be configured" if dry_run else "has been configured") if done.changed else "is configured like that"
    line = f"{done.capsule.name} {what} (identity={done.capsule.identity} key={done.capsule.key_id})"
    tell(options, [line], {"name": done.capsule.name, "identity": done.capsule.identity, "changed": done.changed,
                           "dry_run": dry_run})  # fmt: skip
    if done.changed:
        warn_of_edit(options, done.capsule.name)
