"""``capsulekit shell``: mount, work, umount in one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._edit import AT, KEY, NO_BLOCK, OUT, PUBKEY, editing, packing, signer, told
from provisioner.cli._vnfs import MESSAGE

if TYPE_CHECKING:
    from capsulekit.cli.main import Options


@click.command()
@click.argument("name", metavar="NAME|FILE", shell_complete=capsule_names)
@click.argument("argv", metavar="[CMD]...", nargs=-1, type=click.UNPROCESSED)
@AT
@MESSAGE
@NO_BLOCK
@packing
@OUT
@KEY
@PUBKEY
@click.option("--dry-run", is_flag=True, help="Run CMD, say what it has changed, and keep nothing of it.")
@click.pass_obj
def cli(
    options: Options, name: str, argv: tuple[str, ...], at: Path | None, message: str, no_block: bool, flatten: bool,
    adopt_kernel: bool, move_modules: bool, out: Path | None, key: Path | None, pubkeys: tuple[Path, ...],
    dry_run: bool,
) -> None:  # fmt: skip
    """Mount a capsule, run CMD in it (write -- before it), and umount it: all of it, or, when CMD fails, nothing.

    Without CMD it is a shell at the terminal. The exit status is CMD's.
    """
    from provisioner.cli._site import confirm, tell
    from provisioner.vnfs.editpack import Asked
    from provisioner.vnfs.editshell import Work, run_in

    work = Work(argv, message, Asked(flatten, adopt_kernel, move_modules, options.verbose), not no_block, at, out,
                signer(key), pubkeys, dry_run)  # fmt: skip

    def say(line: str) -> None:
        if not options.quiet:
            click.echo(line, err=True)

    def discard(question: str) -> bool:
        return confirm(options, question)

    with editing(options, name) as editor:
        status, done, lines = run_in(editor, name, work, say, discard, terminal=sys.stdin.isatty())
    more, record = told(done) if done is not None else ([], {"changed": False})
    tell(options, [*lines, *more], {**record, "status": status})
    sys.stdout.flush()
    if status:
        raise click.exceptions.Exit(status)
