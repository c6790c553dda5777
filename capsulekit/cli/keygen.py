"""``capsulekit keygen``: an author's key pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--no-password", is_flag=True, help="Leave the secret key unencrypted.")
@click.pass_obj
def cli(options: Options, path: Path, no_password: bool) -> None:
    """Make a minisign key pair: PATH (secret) and PATH.pub. Never overwrites a file."""
    from capsulekit.cli._terminal import new_password
    from capsulekit.trust.minisign import create_key_files, refuse_existing

    refuse_existing(path)
    key = create_key_files(path, None if no_password else new_password(path))
    if options.json:
        from capsulekit.output import emit_json

        emit_json({"key_id": key.id, "public_key": key.text, "secret": str(path), "public": f"{path}.pub"})
    elif not options.quiet:
        click.echo(f"{path} (secret: keep it) and {path}.pub (give it away) hold key {key.id}")
