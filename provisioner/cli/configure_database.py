"""``capsulekit configure database``: where the registry is."""

from __future__ import annotations

from typing import Any

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import confirm, say, tell
from provisioner.cli._write import load


@click.command()
@click.argument("place", metavar="postgresql://USER@HOST/DATABASE|PATH")
@click.option("--replace", is_flag=True, help="Where nodes are in it already, replace them.")
@click.option("--dry-run", is_flag=True, help="Say what would be moved and move nothing.")
@click.pass_obj
def cli(options: Options, place: str, replace: bool, dry_run: bool) -> None:
    """Move the registry, with all that is in it, to PostgreSQL or to another file.

    A backup is made on the way, and the old registry stays as it is. Several masters share one PostgreSQL. The address
    holds no password: it comes from a passfile (?passfile=/root/.pgpass).
    """
    from capsulekit.errors import CapsulekitError
    from provisioner import moveregistry
    from provisioner.registry.address import shown

    load(options)
    planned = moveregistry.look(options.paths, place)
    where = shown(place)
    record: dict[str, Any] = {"registry": where, "moved": False, "backup": None, "dry_run": dry_run}
    if planned is None:
        tell(options, [f"The registry is {where} already: nothing to do"], record)
        return
    if planned.occupied and not replace:
        raise CapsulekitError(f"{where} holds {planned.there} already", hint="to have them replaced: --replace")
    if planned.occupied:
        click.echo(f"In {where} would be replaced: {planned.there}", err=True)
    say(options, f"To be moved to {where}: {planned.here}")
    record["rows"] = planned.here.rows
    if dry_run:
        tell(options, [], record)
        return
    if not confirm(options, "Move the registry?"):
        raise click.Abort
    backup = moveregistry.move(options.paths, planned)
    line = f"The registry is {where} now; a backup is {backup}, and the old registry is untouched"
    tell(options, [line], record | {"moved": True, "backup": str(backup)})
