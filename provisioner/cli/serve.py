"""``capsulekit serve``: boot the site's nodes."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options


@click.command()
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this file once everything answers; it is removed at the end.",
)
@click.pass_obj
def cli(options: Options, ready_file: Path | None) -> None:
    """Give nodes addresses, boot files and their capsules, until stopped by SIGTERM or Ctrl-C.

    Runs in the foreground and logs to stderr, one event a line.
    """
    from provisioner.server.daemon import serve

    serve(options.paths, ready_file)
