"""``capsulekit node console-log``: what nodes reported of their boots, and who changed what about them."""

from __future__ import annotations

import click

from capsulekit.cli.main import Options
from provisioner.cli._complete import node_names
from provisioner.cli._site import chosen_for_reading, complain, open_site


@click.command()
@click.argument("nodes", nargs=-1, required=True, shell_complete=node_names)
@click.option("--boots", type=click.IntRange(min=1), default=1, show_default=True, help="How many, from the newest.")
@click.option("--all", "every", is_flag=True, help="All that is kept.")
@click.pass_obj
def cli(options: Options, nodes: tuple[str, ...], boots: int, every: bool) -> None:
    """Print what NODES reported: boots, steps with their durations, errors with the last lines of output.

    Between them stands who changed what about the node, and with which command.
    """
    from capsulekit.output import emit_json
    from provisioner.nodelog import boots_of, story

    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    records = []
    for node in chosen:
        found = boots_of(registry.events(node.nodeid), registry.changes(node.nodeid))
        shown = found if every else found[-boots:]
        if options.json:
            records.append({"hostname": node.hostname, "boots": [boot.record() for boot in shown]})
        else:
            click.echo("\n".join(story(node.hostname, shown)))
    if options.json:
        emit_json(records)
    complain(unmatched)
