"""`capsulekit stage1`."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Group, Options
from capsulekit.errors import UsageError

BUILT = Path("stage1")  # as in the recipe's own words: stage1 build … -o stage1/


@click.group("stage1", cls=Group)
def cli() -> None:
    """Stage 1: the small system that fetches a node's capsule."""


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The folder to write to.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.pass_obj
def build(options: Options, recipe: Path | None, out: Path, cache_dir: Path | None) -> None:
    """Write OUT/vmlinuz, OUT/stage1.img and its record OUT/stage1.json from RECIPE (default: the shipped one)."""
    import sys

    from capsulekit.cache import default_cache_dir
    from capsulekit.progress import Progress
    from capsulekit.stage1 import build_stage1
    from capsulekit.stage1recipe import shipped_recipe

    progress = Progress(live=sys.stderr.isatty() and not options.quiet)
    made = build_stage1(recipe or shipped_recipe(), out, cache_dir or default_cache_dir(), progress)
    for remark in made.remarks:
        click.echo(f"note: {remark}", err=True)
    if not options.quiet:
        click.echo(progress.table())
        click.echo(f"{made.folder}: vmlinuz {made.kernel_size / 1e6:.1f} MB, stage1.img {made.image_size / 1e6:.1f} MB")


@cli.command()
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.option("--fleet", is_flag=True, help="Compare it with the devices that this site's nodes have reported.")
@click.pass_obj
def check(options: Options, image: Path | None, fleet: bool) -> None:
    """Check that nothing is missing in a finished stage 1 (a folder that `build -o` wrote, or an image).

    Every library, interpreter, command, module, firmware, configuration file and mount target that something in the
    image wants is looked up in it; what is missing is shown with the chain that wants it, and the exit status is 1.
    """
    from capsulekit.output import emit_json
    from capsulekit.stage1 import check_stage1

    found = image or BUILT
    file = found / "stage1.img" if found.is_dir() else found
    if not file.exists():
        raise UsageError(f"there is no {file}", hint="name the folder that `stage1 build -o` wrote, or an image")
    if fleet:
        from importlib import import_module

        # The provisioner is the package above this one, so it is found by its name.
        report = import_module("provisioner.fleet").fleet_report(options.paths, found)
        if options.json:
            emit_json(report.record())
        else:
            click.echo("\n".join(report.lines()))
        report.refuse()
        return
    verdict = check_stage1(found)
    if options.json:
        emit_json(verdict.record)
    elif not options.quiet and not verdict.problems:
        click.echo(f"{verdict.image.name}: nothing is missing ({verdict.summary})")
    verdict.refuse()
