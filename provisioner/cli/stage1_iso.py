"""``capsulekit stage1 iso``: an image for a CD or a USB stick, for nodes that can't boot by PXE."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import open_site, tell


@click.command("iso")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The image."
)
@click.option(
    "--arch", "arches", multiple=True, metavar="ARCH", help="Only this architecture; may be repeated (default: all)."
)
@click.option("--kargs", default="", metavar="ARGS", help="Kernel arguments after the site's own, like ip=….")
@click.pass_obj
def cli(options: Options, out: Path, arches: tuple[str, ...], kargs: str) -> None:
    """Write an image that boots this site's nodes from a CD or a USB stick, by BIOS or UEFI, without PXE.

    It holds this site's stage 1 and what a node must know of the site, nothing secret. Write it to a stick as it is.
    """
    from provisioner.netboot.iso import make_iso
    from provisioner.siteconf import load_site

    open_site(options).close()
    made = make_iso(options.paths, load_site(options.paths), out, arches, kargs)
    lines = [f"{made.path}: {made.size / 1e6:.1f} MB, stage 1 for {' and '.join(made.arches)}"]
    tell(options, lines, {"path": str(made.path), "size": made.size, "arches": list(made.arches)})
