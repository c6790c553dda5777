"""``capsulekit configure systemd``: the unit that runs ``capsulekit serve``."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._write import DRY_RUN, load, write_files


@click.command()
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Not /etc/systemd/system/capsulekit.service but this file.",
)
@DRY_RUN
@click.pass_obj
def cli(options: Options, file: Path | None, dry_run: bool) -> None:
    """Write the unit of `capsulekit serve` for this site: ready when it answers, and with few rights.

    It is neither started nor enabled.
    """
    from provisioner.services import unit

    load(options)
    write_files(options, unit.changes(options.paths, file or unit.TARGET), dry_run=dry_run, after=[unit.AFTER])
