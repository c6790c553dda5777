"""What the commands that set up a web server before the master share: all but which server it is."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._write import DRY_RUN, RELOAD, load, write_files


def web_command(kind: str, what: str) -> click.Command:
    """The command for one kind of server (a key of services.web.SERVERS), or for the one that is installed ("")."""

    @click.command(
        help=f"Have {what} send capsules in the place of this program.\n\n"
        "It passes on what anybody may have and nothing else, and keeps what never changes."
    )
    @click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Where it listens.")
    @click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="Write this file, whatever there is.")
    @RELOAD
    @DRY_RUN
    @click.pass_obj
    def cli(options: Options, port: int, file: Path | None, reload: bool, dry_run: bool) -> None:
        from provisioner.services import web

        site = load(options)
        server = web.SERVERS[kind] if kind else web.installed()
        after = [server.after, web.mirror_hint(site, port)]
        unit = server.unit if reload else ""
        write_files(options, web.changes(site, server, port, file), dry_run=dry_run, after=after, unit=unit)

    return cli
