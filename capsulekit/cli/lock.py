"""`capsulekit lock`."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), help="The lock to write (default: beside the recipe)."
)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.pass_obj
def cli(options: Options, recipe: Path, out: Path | None, cache_dir: Path | None) -> None:
    """Choose the packages of RECIPE once and write down which they are."""
    from capsulekit.cache import default_cache_dir
    from capsulekit.lock.write import write_lock

    target = out or recipe.with_suffix(".lock")
    lock = write_lock(recipe, target, cache_dir or default_cache_dir())
    if not options.quiet:
        click.echo(f"{target}: {sum(len(p) for p in lock.sets.values())} packages, epoch {lock.epoch}")
