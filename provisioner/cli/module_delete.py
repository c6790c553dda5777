"""``capsulekit module delete``."""

from __future__ import annotations

import click

from capsulekit.cli.main import Options
from capsulekit.errors import CapsulekitError
from provisioner.cli._complete import module_names
from provisioner.cli._site import confirm, open_site, tell


@click.command()
@click.argument("name", shell_complete=module_names)
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.pass_obj
def cli(options: Options, name: str, dry_run: bool) -> None:
    """Delete an imported module, and deactivate it wherever it is activated. Its settings stay."""
    from provisioner.catalog import admin, site_catalog

    registry, catalog = open_site(options), site_catalog(options.paths)
    admin.check_deletable(options.paths, catalog, name)
    if not dry_run:
        active = registry.roles().get(name, [])
        where = f", which is activated in {', '.join(active)}" if active else ""
        if not confirm(options, f"Delete module {name!r}{where}?"):
            raise CapsulekitError("nothing was changed")
    gone = admin.delete_module(options.paths, registry, catalog, name, dry_run=dry_run)
    would = "would be" if dry_run else "has been"
    lines = [f"Module {name!r} {would} deactivated in {role}" for role in gone]
    lines.append(f"Module {name!r} {would} deleted")
    tell(options, lines, {"module": name, "roles": gone, "dry_run": dry_run})
