"""``capsulekit trust``: whose capsules this site accepts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.group()
def cli() -> None:
    """The authors whose capsules this site accepts."""


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--again", is_flag=True, help="Also take back a revocation.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.pass_obj
def add(options: Options, files: tuple[Path, ...], again: bool, dry_run: bool) -> None:
    """Trust the keys in minisign .pub files."""
    from capsulekit.trust.keyring import Keyring

    keyring = Keyring(options.paths.trust)
    # All are looked at before the first is added: one bad file changes nothing.
    for real in (False,) if dry_run else (False, True):
        for file in files:
            key = keyring.add(file, again=again, dry_run=not real)
            if not options.quiet and real != dry_run:
                click.echo(f"key {key.id} {'would be' if dry_run else 'is'} trusted")


@cli.command(name="list")
@click.pass_obj
def list_(options: Options) -> None:
    """Trusted and revoked keys."""
    from capsulekit.output import emit_json, table
    from capsulekit.trust.keyring import Keyring

    known = Keyring(options.paths.trust).list()
    if options.json:
        emit_json([{"key_id": k.key.id, "public_key": k.key.text, "revoked": k.revoked} for k in known])
    else:
        rows = [(k.key.id, "revoked" if k.revoked else "trusted", k.key.text) for k in known]
        click.echo(table([("Key", 16), ("Status", 8), ("Public key", 56)], rows))


@cli.command()
@click.argument("key_id")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.pass_obj
def revoke(options: Options, key_id: str, dry_run: bool) -> None:
    """Stop trusting a key, and remember that it was revoked."""
    from capsulekit.cli._terminal import confirm
    from capsulekit.errors import CapsulekitError
    from capsulekit.trust.keyring import Keyring

    keyring = Keyring(options.paths.trust)
    key = keyring.find(key_id)
    if dry_run:
        click.echo(f"key {key.id} would be revoked")
        return
    if not confirm(options, f"Revoke key {key.id}? Nodes will refuse the capsules that it signed."):
        raise CapsulekitError("nothing was changed")
    keyring.revoke(key_id)
    if not options.quiet:
        click.echo(f"key {key.id} is revoked")
