"""``capsulekit registry``: the registry in a file and back, and the nodes for other programs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import confirm, open_site, say, who

FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def cli() -> None:
    """Back up, restore and export what the site knows about its nodes.

    A backup of a registry in SQLite can be restored into PostgreSQL, and the other way round.
    """


@cli.command()
@FILE
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.pass_obj
def backup(options: Options, file: Path, dry_run: bool) -> None:
    """Write the whole registry, as of now, to FILE; others may go on working with it."""
    from capsulekit.output import emit_json
    from provisioner.registry.backup import contents, write_backup

    registry = open_site(options)
    held = contents(registry.db) if dry_run else write_backup(registry.db, file)
    if options.json:
        emit_json({"file": str(file), "written": not dry_run, "rows": held.rows})
    else:
        say(options, f"{file}: {held} {'would be' if dry_run else 'have been'} backed up")


@cli.command()
@FILE
@click.option("--dry-run", is_flag=True, help="Verify FILE and say what would be replaced; change nothing.")
@click.pass_obj
def restore(options: Options, file: Path, dry_run: bool) -> None:
    """Replace the whole registry by the backup in FILE, after asking."""
    from capsulekit.output import emit_json
    from provisioner.registry.backup import restore_backup, verify_backup
    from provisioner.registry.history import Actor
    from provisioner.registry.registry import describe_registry, open_registry

    found = verify_backup(file)
    now = describe_registry(options.paths)
    if not (options.yes and options.quiet):
        click.echo(f"To be replaced: {now}\nBy {file}: {found}", err=True)
    if not dry_run:
        if not confirm(options, "Replace the whole registry?"):
            raise click.Abort
        registry = open_registry(options.paths, make=True)
        registry.actor = Actor(who(), "registry restore")
        restore_backup(registry, file)
    if options.json:
        emit_json({"file": str(file), "restored": not dry_run, "rows": found.rows})
    else:
        say(options, f"{found} {'would be' if dry_run else 'have been'} restored")


@cli.command()
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", help="csv, unless said otherwise.")
@click.pass_obj
def export(options: Options, form: str) -> None:
    """Print all nodes as CSV, or as JSON, without secrets."""
    from provisioner.registry.export import export_csv, export_json

    registry = open_site(options)
    (export_json if options.json or form == "json" else export_csv)(registry, sys.stdout)
