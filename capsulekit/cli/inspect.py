"""``capsulekit inspect``: what a capsule says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--pubkey", "pubkeys", multiple=True, type=click.Path(path_type=Path), help="Instead of the site's keys.")
@click.pass_obj
def cli(options: Options, file: Path, pubkeys: tuple[Path, ...]) -> None:
    """Show the manifest and the members of a capsule file, and whether a known key vouches for them."""
    from capsulekit.capsule.inspect import as_json, describe, inspect
    from capsulekit.trust.keyring import chosen_keys

    keys, revoked = chosen_keys(options.paths.trust, pubkeys)
    seen = inspect(file, keys, revoked=revoked)
    if options.json:
        from capsulekit.output import emit_json

        emit_json(as_json(seen))
    else:
        click.echo(describe(seen))
