"""``capsulekit configure http``: the web server that is installed, as a cache before the master."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._write import DRY_RUN, RELOAD, load, write_files


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Where it listens.")
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="Write this file, whatever is installed.")
@RELOAD
@DRY_RUN
@click.pass_obj
def cli(options: Options, port: int, file: Path | None, reload: bool, dry_run: bool) -> None:
    """Have the web server of this machine, nginx or Apache, send capsules in the place of this program.

    It passes on what anybody may have and nothing else, and keeps what never changes.
    """
    from provisioner.services import web

    site = load(options)
    server = web.installed()
    after = [server.after, web.mirror_hint(site, port)]
    unit = server.unit if reload else ""
    write_files(options, web.changes(site, server, port, file), dry_run=dry_run, after=after, unit=unit)
