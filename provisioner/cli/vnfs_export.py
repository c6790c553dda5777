"""``capsulekit vnfs export``: an installed capsule as a file again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import DRY_RUN, opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", shell_complete=capsule_names)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--generation", "-g", metavar="N", default="",
              help="An older one: its number in the history, or the beginning of its identity.")  # fmt: skip
@click.option("--without-private", is_flag=True, help="As it was imported, without this site's own layer.")
@click.option("--over", is_flag=True, help="Write over a file that is there.")
@DRY_RUN
@click.pass_obj
def cli(
    options: Options,
    name: str,
    file: Path | None,
    generation: str,
    without_private: bool,
    over: bool,
    dry_run: bool,
) -> None:
    """Write NAME to FILE (a folder will do; default: NAME.vnfs here), byte for byte what was imported.

    A capsule that was changed here goes out with the site's private layers, signed by the site's key.
    """
    from capsulekit.errors import UsageError
    from provisioner.cli._site import tell
    from provisioner.vnfs.export import export
    from provisioner.vnfs.rollback import find_generation

    with opened_store(options) as store:
        if generation and without_private:
            raise UsageError("--without-private is what was imported: no other generation can be named")
        identity = find_generation(store, store.get(name).name, generation).identity if generation else ""
        done = export(store, name, file, generation=identity, private=not without_private, over=over, dry_run=dry_run)
    if done.private:
        click.echo(
            f"WARNING: {done.path} {'would hold' if dry_run else 'holds'} private layers: what they contain is for "
            "this site alone (--without-private leaves out what was made here)",
            err=True,
        )
    what = "would be exported" if dry_run else "has been exported"
    record = {"path": str(done.path), "identity": done.identity, "size": done.size, "private": done.private}
    tell(options, [f"{name} {what} to {done.path} ({done.size / 1e6:.1f} MB)"], {**record, "dry_run": dry_run})
