"""``capsulekit why``: who put a path into a capsule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("capsule", type=click.Path(path_type=Path))
@click.argument("path")
@click.option("--pubkey", "pubkeys", multiple=True, type=click.Path(path_type=Path), help="Instead of the site's keys.")
@click.pass_obj
def cli(options: Options, capsule: Path, path: str, pubkeys: tuple[Path, ...]) -> None:
    """Say which package, line of the recipe, script or rule of the normaliser made PATH what it is in CAPSULE."""
    from capsulekit.trust.keyring import chosen_keys
    from capsulekit.why import as_json, describe, why

    keys, revoked = chosen_keys(options.paths.trust, pubkeys)
    answer = why(capsule, path, keys, revoked=revoked)
    if options.json:
        from capsulekit.output import emit_json

        emit_json(as_json(answer))
    else:
        click.echo(describe(answer))
