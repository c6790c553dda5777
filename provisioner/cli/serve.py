"""``capsulekit serve``: boot the site's nodes; ``serve reload`` and ``serve status`` talk to the one that runs."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Group, Options


@click.group("serve", cls=Group, invoke_without_command=True)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this file once everything answers; it is removed at the end.",
)
@click.pass_context
def cli(context: click.Context, ready_file: Path | None) -> None:
    """Give nodes addresses, boot files and their capsules, until stopped by SIGTERM or Ctrl-C.

    Runs in the foreground and logs to stderr, one event a line.
    """
    if context.invoked_subcommand is not None:
        if ready_file:
            raise click.UsageError(f"--ready-file is for serve alone, not for serve {context.invoked_subcommand}")
        return
    from provisioner.server.daemon import serve

    assert isinstance(context.obj, Options)
    serve(context.obj.paths, ready_file)
