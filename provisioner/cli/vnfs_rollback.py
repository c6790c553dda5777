"""``capsulekit vnfs rollback``: nodes boot again what a capsule was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import DRY_RUN, MESSAGE, opened_store, warn_of_edit

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", shell_complete=capsule_names)
@click.option("--to", metavar="NUMBER|IDENTITY", default="", help="A generation of its history: see vnfs history.")
@MESSAGE
@DRY_RUN
@click.pass_obj
def cli(options: Options, name: str, to: str, message: str, dry_run: bool) -> None:
    """Go back to the generation that the current one of NAME was made from, or to another one.

    Nodes get it at their next boot. Nothing is lost: the history gets a line, and what was current stays in it.
    """
    from provisioner.cli._site import tell
    from provisioner.vnfs.rollback import rollback

    with opened_store(options) as store:
        done = rollback(store, name, to, message=message, dry_run=dry_run)
    row, past = done.capsule, done.to
    what = "would be" if dry_run else "is"
    line = f"{row.name} {what} at generation {past.number} again (identity={row.identity} key={row.key_id})"
    tell(options, [line], {"name": row.name, "number": past.number, "identity": row.identity, "left": done.left,
                           "dry_run": dry_run})  # fmt: skip
    warn_of_edit(options, row.name)
