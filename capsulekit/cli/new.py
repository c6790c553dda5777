"""`capsulekit new`."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--extends", type=click.Path(path_type=Path), help="A recipe to build on; the new one says what differs.")
@click.option("--distro", help="Distribution of the shipped recipe to begin with (default: debian).")
@click.option("--release", help="Its release (default: 12).")
@click.option("--arch", help="Its architecture (default: amd64).")
@click.option("--role", help="What the node is for: minimal, compute, login or rescue (default: compute).")
@click.option("--name", help="Name of the capsule (default: FILE without its ending).")
@click.option("--dry-run", is_flag=True, help="Print the recipe; write nothing.")
@click.pass_obj
def cli(
    options: Options,
    file: Path,
    extends: Path | None,
    distro: str | None,
    release: str | None,
    arch: str | None,
    role: str | None,
    name: str | None,
    dry_run: bool,
) -> None:
    """Write a small commented recipe to FILE. Never overwrites a file."""
    from capsulekit.errors import UsageError
    from capsulekit.output import emit_json
    from capsulekit.recipe.new import Start, create, new_recipe

    asked = {"distro": distro, "release": release, "arch": arch, "role": role}
    told = {key: value for key, value in asked.items() if value is not None}
    if extends and told:
        raise UsageError(
            f"--extends and --{next(iter(told))} exclude each other", hint="the parent says what it is for"
        )
    called, text = new_recipe(file, name, extends or Start(**told))
    create(file, text, dry_run)
    if options.json:
        emit_json({"name": called, "path": str(file), "recipe": text, "written": not dry_run})
    elif dry_run:
        click.echo(text, nl=False)
    elif not options.quiet:
        click.echo(f"{file}: the recipe of {called}; build it with: capsulekit build {file} --key KEY")
