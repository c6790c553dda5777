"""``capsulekit prove``: a capsule made again in other surroundings, and a signed verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.cli._terminal import key_password

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("capsule", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="The secret key that signs the verdict.")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    help="The verdict to write (default: CAPSULE.verdict.json); its signature is beside it, OUT.minisig.",
)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages are kept; no result is reused.")
@click.option("--pubkey", "pubkeys", multiple=True, type=click.Path(path_type=Path), help="Instead of the site's keys.")
@click.pass_obj
def cli(
    options: Options, capsule: Path, key: Path, out: Path | None, cache_dir: Path | None, pubkeys: tuple[Path, ...]
) -> int:
    """Make CAPSULE again twice, on another day, as another user, in another folder …, and sign what came out.

    Exit 0 when both gave the same bytes; 3 when not, and then the paths that differ are named with their owners.
    """
    import sys

    from capsulekit.cache import Cache, default_cache_dir
    from capsulekit.errors import CapsulekitError
    from capsulekit.progress import Progress
    from capsulekit.prove import describe, prove, write_verdict
    from capsulekit.rebuild import source_of
    from capsulekit.trust.keyring import chosen_keys
    from capsulekit.trust.minisign import load_secret

    target = out or capsule.with_name(capsule.name + ".verdict.json")
    if not target.parent.is_dir():
        raise CapsulekitError(f"there is no folder {target.parent} to write the verdict to", hint="make it first")
    keys, revoked = chosen_keys(options.paths.trust, pubkeys)
    source = source_of(capsule, keys, revoked=revoked)
    signer = load_secret(key, key_password(key))
    progress = Progress(live=sys.stderr.isatty() and not options.quiet)
    verdict = prove(source, Cache(cache_dir or default_cache_dir()), progress)
    write_verdict(verdict, target, signer)
    if options.json:
        click.echo(verdict.dumps().decode(), nl=False)
    elif not options.quiet:
        click.echo(progress.table())
        click.echo(describe(verdict))
        word = "the same bytes both times" if verdict.same else "NOT the same bytes"
        click.echo(f"{target}: {verdict.name}, {word}, signed by {signer.public.id}")
    return 0 if verdict.same else 3
