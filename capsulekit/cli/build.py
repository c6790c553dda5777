"""`capsulekit build`."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli._terminal import key_password
from capsulekit.cli.main import Options


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    help="The capsule to write (default: NAME-VERSION.ARCH.vnfs).",
)
@click.option(
    "--key", type=click.Path(path_type=Path), required=True, help="The secret key that signs (capsulekit keygen)."
)
@click.option("--lock", type=click.Path(path_type=Path), help="Install exactly what this lock says.")
@click.option("--offline", is_flag=True, help="Open no connection; needs --lock.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.option("--write-lock", is_flag=True, help="Keep the lock beside the recipe.")
@click.pass_obj
def cli(
    options: Options,
    recipe: Path,
    out: Path | None,
    key: Path,
    lock: Path | None,
    offline: bool,
    cache_dir: Path | None,
    write_lock: bool,
) -> None:
    """Build RECIPE into one signed capsule."""
    import sys

    from capsulekit.build import BuildOptions, build
    from capsulekit.cache import default_cache_dir
    from capsulekit.output import emit_json
    from capsulekit.progress import Progress
    from capsulekit.recipe.load import load_recipe

    target = out or Path(load_recipe(recipe).full_name + ".vnfs")
    progress = Progress(live=sys.stderr.isatty() and not options.quiet)
    asked = BuildOptions(recipe, target, key, lock, offline, cache_dir or default_cache_dir())
    result = build(asked, key_password(key), progress)
    if write_lock and lock is None:
        from capsulekit.lock.write import write_lock_of

        write_lock_of(result.path, recipe.with_suffix(".lock"))
    if options.json:
        emit_json(
            {
                "name": result.name,
                "path": str(result.path),
                "identity": result.identity,
                "size": result.size,
                "warnings": list(result.warnings),
                "steps": [{"name": s.name, "seconds": s.seconds, "reused": s.reused} for s in progress.steps],
            }
        )
        return
    if options.verbose:
        for warning in result.warnings:
            click.echo(f"WARNING: {warning}", err=True)
    if not options.quiet:
        click.echo(progress.table())
        click.echo(f"{result.path}: {result.name}, {result.size / 1e6:.1f} MB, identity {result.identity}")
