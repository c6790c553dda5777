"""`capsulekit stage1`."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options


@click.group()
def cli() -> None:
    """Stage 1: the small system that fetches a node's capsule."""


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The folder to write to.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.pass_obj
def build(options: Options, recipe: Path | None, out: Path, cache_dir: Path | None) -> None:
    """Write OUT/vmlinuz and OUT/stage1.img from RECIPE (default: the shipped one)."""
    import sys

    from capsulekit.cache import default_cache_dir
    from capsulekit.progress import Progress
    from capsulekit.stage1 import build_stage1, default_recipe

    progress = Progress(live=sys.stderr.isatty() and not options.quiet)
    made = build_stage1(recipe or default_recipe(), out, cache_dir or default_cache_dir(), progress)
    if not options.quiet:
        click.echo(progress.table())
        click.echo(f"{made.folder}: vmlinuz {made.kernel_size / 1e6:.1f} MB, stage1.img {made.image_size / 1e6:.1f} MB")
