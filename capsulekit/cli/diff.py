"""``capsulekit diff``: what differs between two capsules, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--pubkey", "pubkeys", multiple=True, type=click.Path(path_type=Path), help="Instead of the site's keys.")
@click.pass_obj
def cli(options: Options, first: Path, second: Path, pubkeys: tuple[Path, ...]) -> None:
    """Compare two capsule files: packages, paths, sizes, kernel, and what caused each change.

    Two capsules that differ are no failure: the exit status is 0 (scripts read `same` of --json).
    """
    from capsulekit.diff import as_json, describe, diff
    from capsulekit.trust.keyring import chosen_keys

    keys, revoked = chosen_keys(options.paths.trust, pubkeys)
    found = diff(first, second, keys, revoked=revoked)
    if options.json:
        from capsulekit.output import emit_json

        emit_json(as_json(found))
    else:
        click.echo(describe(found, options.verbose))
