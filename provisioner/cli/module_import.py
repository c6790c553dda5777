"""``capsulekit module import``."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import open_site, tell


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Verify it and say what would be done; change nothing.")
@click.pass_obj
def cli(options: Options, file: Path, dry_run: bool) -> None:
    """Import a module from FILE.pmod, if an author that this site trusts has signed it.

    It replaces an earlier version of the same author's. Nothing of it runs before it is activated.
    """
    from provisioner.catalog import admin, site_catalog

    open_site(options)
    module, old = admin.import_module_file(options.paths, site_catalog(options.paths), file, dry_run=dry_run)
    would = "would be" if dry_run else "has been"
    instead = f", replacing {old}" if old else ""
    lines = [f"Module {module.name!r} {module.version} {would} imported{instead} (signed by {module.key_id})"]
    told = {"module": module.name, "version": module.version, "key_id": module.key_id, "digest": module.digest}
    tell(options, lines, {**told, "replaced": old, "dry_run": dry_run})
