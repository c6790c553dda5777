"""``capsulekit verify``: is this capsule what a known author signed?"""

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
    """Check signature, digests and manifest of a capsule file; exit 3 when anything does not hold."""
    from capsulekit.capsule.read import UntrustedKey, open_capsule, verify
    from capsulekit.trust.keyring import chosen_keys

    keys, revoked = chosen_keys(options.paths.trust, pubkeys)
    try:
        with open_capsule(file) as capsule:
            good = verify(capsule, keys, revoked=revoked)
    except UntrustedKey as wrong:
        if not pubkeys:
            raise
        # Trusting the key at this site would not help: it was not asked.
        raise UntrustedKey(wrong.message, wrong.key_id, hint="no --pubkey holds that key") from None
    if options.json:
        from capsulekit.output import emit_json

        emit_json({"name": good.manifest.full_name, "identity": good.identity, "key_id": good.key.id})
    elif not options.quiet:
        click.echo(f"OK {good.manifest.full_name} identity={good.identity} key={good.key.id}")
