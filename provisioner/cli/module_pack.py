"""``capsulekit module pack``."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli._terminal import key_password
from capsulekit.cli.main import Options
from provisioner.cli._site import tell


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Default: NAME-VERSION.pmod.")
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="The secret key that signs (capsulekit keygen)."
)
@click.option("--dry-run", is_flag=True, help="Check the module, write nothing.")
@click.pass_obj
def cli(options: Options, folder: Path, out: Path | None, key: Path, dry_run: bool) -> None:
    """Pack FOLDER, a module with its module.toml, into a signed archive for other sites to import."""
    from capsulekit.errors import UsageError
    from capsulekit.trust.minisign import load_secret
    from provisioner.catalog.found import folder_files
    from provisioner.catalog.pmod import write_pmod
    from provisioner.catalog.read import read_module

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    files = folder_files(folder)
    module = read_module(files, str(folder))
    target = out or Path(f"{module.name}-{module.version}.pmod")
    secret = load_secret(key, key_password(key))
    if not dry_run:
        write_pmod(target, files, secret)
    lines = [f"Module {module.name!r} {module.version} {'would be' if dry_run else 'is'} packed into {target}"]
    record = {"module": module.name, "version": module.version, "file": str(target), "dry_run": dry_run}
    tell(options, lines, record)
