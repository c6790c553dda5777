"""``capsulekit configure``: the services around the master, each file shown before it is written."""

from __future__ import annotations

import click

from capsulekit.cli.main import Group


@click.group("configure", cls=Group)
def cli() -> None:
    """Set up one service of the master: show what would change, ask, keep the old file, write.

    Of a file that others use too only the block between our marks is written. Nothing is restarted or reloaded unless
    --reload says so.
    """
