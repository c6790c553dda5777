"""The command that ``capsulekit umount`` and ``capsulekit vnfs umount`` both are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._edit import KEY, OUT, editing, packing, signer, told
from provisioner.cli._vnfs import DRY_RUN, MESSAGE

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", metavar="NAME|DIR|FILE", shell_complete=capsule_names)
@MESSAGE
@packing
@OUT
@KEY
@DRY_RUN
@click.pass_obj
def cli(
    options: Options, name: str, message: str, flatten: bool, adopt_kernel: bool, move_modules: bool,
    out: Path | None, key: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Pack what was changed as one more layer, make it what nodes boot from now on, and unmount.

    Of a capsule file a new sealed one is written in its place, or to -o FILE. Where nothing was changed nothing is
    made. When anything fails it is still mounted, and nodes boot what they booted.
    """
    from provisioner.cli._site import tell
    from provisioner.vnfs.edit import umount
    from provisioner.vnfs.editpack import Asked

    asked = Asked(flatten, adopt_kernel, move_modules, options.verbose)
    with editing(options, name) as editor:
        done = umount(editor, name, asked, message=message, out=out, signer=signer(key), dry_run=dry_run)
    tell(options, *told(done))
