"""``capsulekit vnfs``: the capsules that are installed at this site."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.store import VnfsStore


@click.group()
def cli() -> None:
    """Installed capsules."""


@cli.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "as_name", metavar="NAME", help="Install it under this name.")
@click.option("--dry-run", is_flag=True, help="Verify it and say what would be done.")
@click.pass_obj
def import_(options: Options, file: Path, as_name: str | None, dry_run: bool) -> None:
    """Verify a capsule file and install it. No node boots anything else because of it."""
    with _store(options) as store:
        done = store.install(file, as_name, dry_run=dry_run)
    if options.json:
        from dataclasses import asdict

        from capsulekit.output import emit_json

        emit_json({"capsule": asdict(done.capsule), "new": done.new, "hybrid": done.hybrid, "dry_run": dry_run})
    elif not options.quiet:
        capsule = done.capsule
        what = "would be imported" if dry_run else "imported"
        said = what if done.new else "is installed already: nothing to do"
        click.echo(f"{capsule.name} {said} (identity={capsule.identity} key={capsule.key_id})")
    if done.hybrid:
        click.echo(
            f"WARNING: {done.hybrid / 1e6:.1f} MB of {done.capsule.name} are in its hybrid layer, which this master "
            "does not export: nodes will lack those paths",
            err=True,
        )


@cli.command(name="list")
@click.pass_obj
def list_(options: Options) -> None:
    """The names of all installed capsules; with -v also version, key, time and identity."""
    with _store(options) as store:
        capsules = store.list()
    if options.json:
        from dataclasses import asdict

        from capsulekit.output import emit_json

        emit_json([asdict(one) for one in capsules])
    elif options.verbose:
        import time

        from capsulekit.output import table

        columns = [("VNFS", 36), ("Version", 12), ("Key", 16), ("Imported (UTC)", 19), ("Identity", 64)]
        stamp = [time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.imported)) for one in capsules]
        rows = [(c.name, c.version, c.key_id, when, c.identity) for c, when in zip(capsules, stamp, strict=True)]
        click.echo(table(columns, rows))
    else:
        for one in capsules:
            click.echo(one.name)


@contextmanager
def _store(options: Options) -> Iterator[VnfsStore]:
    from provisioner.cli._site import open_site
    from provisioner.vnfs.store import VnfsStore

    registry = open_site(options)
    try:
        yield VnfsStore(options.paths, registry)
    finally:
        registry.close()
