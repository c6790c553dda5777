"""`capsulekit lock`."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli._terminal import variables_of
from capsulekit.cli.main import Options


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), help="The lock to write (default: beside the recipe)."
)
@click.option(
    "--update", "update", is_flag=False, flag_value="*", metavar="[PKG]",
    help="Choose anew: everything, or PKG and what it newly needs while all else stays.",
)  # fmt: skip
@click.option("--why", metavar="PKG", help="Say what asked for a locked package; nothing is written.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a variable of the recipe.")
@click.option("--dry-run", is_flag=True, help="Say what would change in the lock; nothing is written.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where packages and results are kept.")
@click.pass_obj
def cli(
    options: Options,
    recipe: Path,
    out: Path | None,
    update: str | None,
    why: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    cache_dir: Path | None,
) -> None:
    """Choose the packages of RECIPE once and write down which they are."""
    from capsulekit.cache import default_cache_dir
    from capsulekit.lock.write import LockOptions, chain_to, changes, lock_beside, write_lock
    from capsulekit.output import emit_json

    target = out or lock_beside(recipe)
    if why is not None:
        chain = chain_to(target, why)
        emit_json({"package": why, "chain": chain}) if options.json else click.echo(" <- ".join(chain))
        return
    asked = LockOptions(recipe, target, cache_dir or default_cache_dir(), variables_of(settings), update, dry_run)
    before, lock = write_lock(asked)
    lines = changes(before, lock)
    count = sum(len(p) for p in lock.sets.values())
    if options.json:
        emit_json({"path": str(target), "packages": count, "epoch": lock.epoch, "changes": lines, "dry_run": dry_run})
    elif not options.quiet:
        for line in lines if before else ():
            click.echo(f"  {line}")
        said = "would hold" if dry_run else "holds"
        click.echo(f"{target} {said} {count} packages, epoch {lock.epoch}")
