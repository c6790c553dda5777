"""``capsulekit rebuild``: a capsule made again from itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("capsule", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The capsule to write.")
@click.option("--offline", is_flag=True, help="Open no connection: every package must be in the cache.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.option("--pubkey", "pubkeys", multiple=True, type=click.Path(path_type=Path), help="Instead of the site's keys.")
@click.pass_obj
def cli(
    options: Options, capsule: Path, out: Path, offline: bool, cache_dir: Path | None, pubkeys: tuple[Path, ...]
) -> None:
    """Make CAPSULE again from the recipe and the lock inside it, with the signatures it has.

    Exit 3 when any member comes out otherwise; nothing is written then.
    """
    import sys

    from capsulekit.cache import Cache, default_cache_dir
    from capsulekit.progress import Progress
    from capsulekit.rebuild import rebuild, source_of
    from capsulekit.trust.keyring import chosen_keys

    keys, revoked = chosen_keys(options.paths.trust, pubkeys)
    source = source_of(capsule, keys, revoked=revoked)
    progress = Progress(live=sys.stderr.isatty() and not options.quiet)
    made = rebuild(source, out, Cache(cache_dir or default_cache_dir()), progress, offline=offline)
    if options.json:
        from capsulekit.output import emit_json

        steps = [{"name": s.name, "seconds": s.seconds, "reused": s.reused} for s in progress.steps]
        emit_json(
            {"name": made.name, "path": str(out), "identity": made.identity, "key_id": made.key_id, "steps": steps}
        )
    elif not options.quiet:
        click.echo(progress.table())
        click.echo(f"{out}: the same {made.name}, identity {made.identity}, signed by {made.key_id}")
