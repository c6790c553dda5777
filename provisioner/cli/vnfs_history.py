"""``capsulekit vnfs history``: what a capsule was, who made it that, and which nodes have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli._complete import capsule_names
from provisioner.cli._vnfs import opened_store

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.rollback import Line

COLUMNS = [("No", 5), ("When (UTC)", 19), ("Who", 12), ("Kind", 10), ("Identity", 17), ("What", 17), ("Nodes", 6)]

MOST_PACKAGES = 3  # in a line, without -v


@click.command()
@click.argument("name", shell_complete=capsule_names)
@click.pass_obj
def cli(options: Options, name: str) -> None:
    """The generations of NAME, oldest first: the last one is what nodes boot. With -v whole identities and nodes."""
    from provisioner.vnfs.rollback import history

    with opened_store(options) as store:
        row = store.get(name)
        lines = history(store, row.name)
    if options.json:
        from capsulekit.output import emit_json

        emit_json({"name": row.name, "history": [line.record() for line in lines]})
        return
    from capsulekit.errors import printable
    from capsulekit.output import table

    cells = [[printable(text) for text in _cells(line, whole=bool(options.verbose))] for line in lines]
    click.echo(table([*COLUMNS, ("Message", 0)], cells))


def _cells(line: Line, *, whole: bool) -> tuple[str, ...]:
    import time

    from provisioner.vnfs.rollback import changed

    past = line.past
    marks = [word for word, holds in (("current", line.current), ("imported", line.imported)) if holds]
    marks += ["deleted"] if past.gone is not None else []
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(past.time))
    identity = past.identity if whole else f"{past.identity[:16]}…"
    nodes = " ".join(line.nodes) if whole else str(len(line.nodes))
    said = "; ".join(text for text in (past.message, changed(past.changes, MOST_PACKAGES * (1 + 99 * whole))) if text)
    return str(past.number), when, past.who or "-", past.kind, identity, ", ".join(marks) or "-", nodes, said
