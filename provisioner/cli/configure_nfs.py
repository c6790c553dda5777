"""``capsulekit configure nfs``: what the nodes may mount from this master."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._write import DRY_RUN, RELOAD, load, write_files


@click.command()
@click.option("--export", "exports", multiple=True, metavar="FOLDER[:rw]", help="Also this folder, such as /home:rw.")
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="Not /etc/exports but this file.")
@RELOAD
@DRY_RUN
@click.pass_obj
def cli(options: Options, exports: tuple[str, ...], file: Path | None, reload: bool, dry_run: bool) -> None:
    """Export the site's public files, and the folders named, to the nodes' network.

    Only the block between our marks in the exports file is ours; a run without --export takes the others out of it.
    """
    from provisioner.services import nfs

    site = load(options)
    more = [nfs.parse_export(text) for text in exports]
    changes = nfs.changes(options.paths, site, more, file or nfs.EXPORTS)
    if not dry_run:
        nfs.make_folder(options.paths)
    after = [nfs.AFTER, *([nfs.TWO_SERVERS] if site.nfs == "ganesha" else [])]
    write_files(options, changes, dry_run=dry_run, after=after, unit=nfs.UNIT if reload else "")
