"""``capsulekit configure hosts``: the nodes in this master's hosts file."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import open_site
from provisioner.cli._write import DRY_RUN, RELOAD, load, take_on, write_files


@click.command()
@click.option("--first", metavar="IP", default="", help="Give nodes without an address one, counting up from this.")
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help="Another file than the site's hosts_file."
)
@RELOAD
@DRY_RUN
@click.pass_obj
def cli(options: Options, first: str, file: Path | None, reload: bool, dry_run: bool) -> None:
    """Write a line for every node that has a fixed address, in a block of our own.

    With --first nodes without one get theirs by this file, as in the manual; they keep it the next time.
    """
    from provisioner.netboot.configure import hosts_change
    from provisioner.netboot.networks import load_networks

    site = load(options)
    path = file or Path(site.hosts_file or "/etc/hosts")
    registry = open_site(options)
    nodes = registry.nodes()
    registry.close()
    change = hosts_change(site, load_networks(options.paths, site), nodes, path, first)
    if write_files(options, [change], dry_run=dry_run):
        take_on(options, reload=reload)
