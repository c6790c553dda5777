"""`capsulekit pack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.cli._terminal import key_password
from capsulekit.cli.main import Options

if TYPE_CHECKING:
    from capsulekit.pack import Plan


@click.command()
@click.argument("root", metavar="ROOTDIR", type=click.Path(path_type=Path))
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
@click.option("--name", help="Name of the capsule (default: the distribution and its release, from os-release).")
@click.option("--version", default="1.0", show_default=True, help="Version of the capsule.")
@click.option("--kernel", metavar="RELEASE", help="Which kernel, when the tree has several.")
@click.option("--init", default="/sbin/init", show_default=True, help="First program of the booted root.")
@click.option("--cmdline", default="", help="Kernel arguments.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where layers are made.")
@click.option("--dry-run", is_flag=True, help="Look at the tree, say what would be packed, and write nothing.")
@click.pass_obj
def cli(
    options: Options,
    root: Path,
    out: Path | None,
    key: Path,
    name: str | None,
    version: str,
    kernel: str | None,
    init: str,
    cmdline: str,
    cache_dir: Path | None,
    dry_run: bool,
) -> None:
    """Pack ROOTDIR, a root file system made elsewhere, into one signed capsule. ROOTDIR is only read.

    It must hold a kernel with its modules, and the programs of stage 2: busybox, or coreutils, util-linux and kmod, and
    acl's setfacl. What is mounted in it is left out.
    """
    import sys

    from capsulekit.cache import default_cache_dir
    from capsulekit.output import emit_json
    from capsulekit.pack import PackOptions, pack, plan_pack
    from capsulekit.progress import Progress

    cache = cache_dir or default_cache_dir()
    asked = PackOptions(root, out, name, version, kernel, init, cmdline, cache, live=options.yes and not options.no)
    if dry_run:
        plan = plan_pack(asked)
        if options.json:
            emit_json({**_described(plan), "warnings": list(plan.warnings)})
            return
        for warning in plan.warnings:
            click.echo(f"WARNING: {warning}", err=True)
        if not options.quiet:
            click.echo("\n".join(f"{what}: {value}" for what, value in _described(plan).items()))
        return
    progress = Progress(live=sys.stderr.isatty() and not options.quiet)
    made = pack(asked, key, key_password(key), progress)
    if options.json:
        told = {"name": made.name, "path": str(made.path), "identity": made.identity, "size": made.size}
        emit_json({**told, "warnings": list(made.warnings)})
        return
    for warning in made.warnings:
        click.echo(f"WARNING: {warning}", err=True)
    if not options.quiet:
        click.echo(progress.table())
        click.echo(f"{made.path}: {made.name}, {made.size / 1e6:.1f} MB, identity {made.identity}")


def _described(plan: Plan) -> dict[str, object]:
    return {
        "name": plan.recipe.full_name,
        "path": str(plan.out),
        "distro": f"{plan.system.distro} {plan.system.release}",
        "kernel": plan.system.kernel.release,
        "init": plan.recipe.init,
        "epoch": plan.epoch,
        "paths": plan.survey.paths,
        "bytes": plan.survey.size,
    }
