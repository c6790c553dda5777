"""``capsulekit import``: nodes from what other programs wrote, and from DHCP as they ask."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Group, Options
from provisioner.cli._site import open_site, say, tell

if TYPE_CHECKING:
    from provisioner.importing import Imported


class Kinds(Group):
    """One command for each importer, made when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """The kinds, and what is written here."""
        from provisioner.importers import kinds

        return sorted({*self.commands, *kinds()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The importer's command, or None."""
        from provisioner.importers import importer, kinds

        if cmd_name in kinds():
            return _command(cmd_name, importer(cmd_name).ABOUT)
        return self.commands.get(cmd_name) if ctx else None


@click.group(name="import", cls=Kinds)
def cli() -> None:
    """Add nodes from a file or folder of another program, or from the DHCP requests of machines that start now.

    Everything is checked before anything is changed, and a second run changes nothing.
    """


def _command(kind: str, about: str) -> click.Command:
    @click.pass_obj
    def run(options: Options, source: Path, update: bool, dry_run: bool) -> None:
        _import(options, kind, source, update, dry_run)

    return click.Command(
        kind,
        callback=run,
        help=f"{about}\n\nNodes that are registered keep what they have and get what they lack; where SOURCE says "
        "something else nothing is changed and every conflict is named.",
        short_help=about,
        params=[
            # Not readable is refused when it is read: status 1 and the way out, not wrong usage.
            click.Argument(["source"], type=click.Path(path_type=Path, readable=False)),
            click.Option(["--update"], is_flag=True, help="Where they differ, SOURCE wins."),
            click.Option(["--dry-run"], is_flag=True, help="Check and say what would be done; change nothing."),
        ],
    )


def _import(options: Options, kind: str, source: Path, update: bool, dry_run: bool) -> None:
    from provisioner.importers import importer
    from provisioner.importing import import_found

    group = {".vnfs": "vnfs", ".pmod": "module"}.get(source.suffix) if kind == "perceus" else None
    if group is not None:
        _delegate(group, source, dry_run)
        return
    found = importer(kind).read(source)
    with closing(open_site(options)) as registry:
        done = import_found(options.paths, registry, found, update=update, dry_run=dry_run)
    _report(options, done, found.files, dry_run)
    for path in found.files:
        group = "vnfs" if path.suffix == ".vnfs" else "module"
        say(options, f"{path.name} is there too: capsulekit {group} import {path}")


def _delegate(group: str, source: Path, dry_run: bool) -> None:
    """Run `vnfs import` or `module import` as if it had been typed."""
    context = click.get_current_context()
    tree = context.find_root().command
    assert isinstance(tree, click.Group)
    words = [group, "import", str(source), *(["--dry-run"] if dry_run else [])]
    with tree.make_context(context.find_root().info_name, words, parent=None, obj=context.obj) as inner:
        tree.invoke(inner)


def _report(options: Options, done: Imported, files: Sequence[Path], dry_run: bool) -> None:
    from dataclasses import asdict

    would = "would be " if dry_run else ""
    counts = f"{len(done.added)} {would}added, {len(done.changed)} {would}changed, {done.same} as they were"
    tell(options, [*done.lines, counts], asdict(done) | {"files": list(map(str, files)), "dry_run": dry_run})
    if not options.quiet:
        for note in done.notes:
            click.echo(f"WARNING: {note}", err=True)


@cli.command("insert-ethers")
@click.option("--interface", metavar="NAME", help="Where to listen; the site's own interface if not said.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after so many new machines.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop after so long.")
@click.option("--dry-run", is_flag=True, help="Say which machines ask and add none.")
@click.pass_obj
def insert_ethers(
    options: Options, interface: str | None, count: int | None, timeout: float | None, dry_run: bool
) -> None:
    """Add every machine that asks for an address by DHCP, in the order in which they are switched on.

    Whoever can send a packet on that network is added: switch on nothing else meanwhile. One of --count and --timeout
    is needed; with both, the first that is reached ends it, and fewer than --count is exit status 1.
    """
    from provisioner.insertethers import insert

    added = []
    try:
        with closing(open_site(options)) as registry:
            for node in insert(options.paths, registry, interface, count=count, timeout=timeout, dry_run=dry_run):
                say(options, f"Node {node.hostname!r} {'would be' if dry_run else 'has been'} added ({node.nodeid})")
                added.append({"added": node.hostname, "nodeid": node.nodeid, "name": node.name})
    finally:
        if added or sys.exc_info()[0] is None:
            tell(options, [], {"nodes": added, "dry_run": dry_run})
