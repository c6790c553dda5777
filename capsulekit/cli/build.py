"""`capsulekit build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.cli._terminal import key_password, variables_of
from capsulekit.cli.main import Options

if TYPE_CHECKING:
    from capsulekit.build import BuildResult
    from capsulekit.progress import Progress


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
@click.option("--locked", is_flag=True, help="The same, with the lock beside the recipe.")
@click.option("--offline", is_flag=True, help="Open no connection; needs a lock.")
@click.option("--write-lock", is_flag=True, help="Keep the lock beside the recipe.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a variable of the recipe.")
@click.option("--release", is_flag=True, help="Pack smaller and slower ([image] release_level).")
@click.option("--break", "stop_after", metavar="STEP", default="", help="Open a shell in the root after STEP and end.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.pass_obj
def cli(
    options: Options,
    recipe: Path,
    out: Path | None,
    key: Path,
    lock: Path | None,
    locked: bool,
    offline: bool,
    write_lock: bool,
    settings: tuple[str, ...],
    release: bool,
    stop_after: str,
    cache_dir: Path | None,
) -> None:
    """Build RECIPE into one signed capsule.

    Without a lock the packages are chosen from the archive as it is now, and the lock travels inside the capsule.
    """
    import sys

    from capsulekit import run
    from capsulekit.build import BuildOptions, build
    from capsulekit.cache import default_cache_dir
    from capsulekit.progress import Progress
    from capsulekit.recipe.load import load_recipe

    beside = recipe.with_suffix(".lock")
    if write_lock and (lock or locked):
        raise click.UsageError("--write-lock makes a new lock; it cannot go with --lock or --locked")
    if stop_after and not sys.stdin.isatty():
        raise click.UsageError("--break opens a shell and needs a terminal")
    run.show_commands = options.verbose
    variables = variables_of(settings)
    target = out or Path(load_recipe(recipe, variables).full_name + ".vnfs")
    # At a terminal a line per command and a line that is drawn anew would tear each other.
    progress = Progress(live=sys.stderr.isatty() and not (options.quiet or options.verbose or stop_after))
    asked = BuildOptions(
        recipe=recipe,
        out=target,
        key=key,
        lock=lock or (beside if locked else None),
        offline=offline,
        cache=cache_dir or default_cache_dir(),
        release=release,
        variables=variables,
        stop_after=stop_after,
    )
    result = build(asked, key_password(key), progress)
    if write_lock:
        from capsulekit.lock.write import write_lock_of

        write_lock_of(result.path, beside)
    _report(options, result, progress)


def _report(options: Options, result: BuildResult, progress: Progress) -> None:
    from capsulekit.output import emit_json

    if options.json:
        emit_json(
            {
                "name": result.name,
                "path": str(result.path),
                "identity": result.identity,
                "size": result.size,
                "warnings": list(result.warnings),
                "hybrid": list(result.hybrid),
                "steps": [{"name": s.name, "seconds": s.seconds, "reused": s.reused} for s in progress.steps],
            }
        )
        return
    for warning in result.warnings:
        click.echo(f"WARNING: {warning}", err=True)
    if not options.quiet:
        click.echo(progress.table())
        for line in result.hybrid:
            click.echo(f"  {line}")
        click.echo(f"{result.path}: {result.name}, {result.size / 1e6:.1f} MB, identity {result.identity}")
