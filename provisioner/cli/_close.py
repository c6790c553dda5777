"""The command that ``capsulekit close`` and ``capsulekit vnfs close`` both are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._edit import editing
from provisioner.cli._vnfs import DRY_RUN

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", metavar="NAME|DIR|FILE", shell_complete=capsule_names)
@DRY_RUN
@click.pass_obj
def cli(options: Options, name: str, dry_run: bool) -> None:
    """Unmount a capsule and discard what was changed in it, truly.

    What is lost is said; at a terminal it asks first.
    """
    from provisioner.cli._site import confirm, tell
    from provisioner.vnfs.edit import close

    with editing(options, name) as editor:
        record, lost, gone = close(editor, name, dry_run=True)
        if not dry_run and not gone:
            if lost and not options.quiet:
                click.echo("\n".join([f"What is lost of {record.name}:", *(f"  {line}" for line in lost)]), err=True)
            if lost and (options.no or sys.stdin.isatty()) and not confirm(options, "Discard that?"):
                raise click.Abort
            record, lost, gone = close(editor, name)
    lines = [f"{record.name} has been closed; what was changed in it is discarded"]
    if dry_run:
        lines = [f"{record.name} would be closed", *(f"  lost: {line}" for line in lost)]
    elif not lost:
        lines = [f"{record.name} has been closed; nothing was changed in it"]
    tell(options, lines, {"name": record.name, "at": record.at, "lost": list(lost), "dry_run": dry_run})
