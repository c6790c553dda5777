"""``capsulekit node drift``: what was changed on the nodes, and what a reboot would change."""

from __future__ import annotations

import click

from capsulekit.cli.main import Options
from provisioner.cli._complete import node_names
from provisioner.cli._site import chosen_for_reading, complain, open_site


@click.command()
@click.argument("nodes", nargs=-1, shell_complete=node_names)
@click.pass_obj
def cli(options: Options, nodes: tuple[str, ...]) -> None:
    """Tell what was changed on the nodes, and whether a reboot would change them.

    Each node's files, as its agent told of them last, against its generation and what its modules made; and what it was
    told to boot against what it would be told now. "NODES: WHAT" a line, nodes of which the same is said as a range;
    with -v also the paths, and the nodes that are as they booted. The status is 0 whatever is found.
    """
    from capsulekit.output import emit_json
    from provisioner.drifting import drift_of, folded

    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    found = drift_of(options.paths, registry, chosen)
    if options.json:
        emit_json([drift.record() for drift in found])
    else:
        for line in folded(found, bool(options.verbose)):
            click.echo(line)
    complain(unmatched)
