"""``capsulekit node drift``: which running nodes a reboot would change."""

from __future__ import annotations

import click

from capsulekit.cli.main import Options
from provisioner.cli._complete import node_names
from provisioner.cli._site import chosen_for_reading, complain, open_site


@click.command()
@click.argument("nodes", nargs=-1, shell_complete=node_names)
@click.pass_obj
def cli(options: Options, nodes: tuple[str, ...]) -> None:
    """Tell whether a reboot would change the nodes: what each was told to boot against what it would be told now.

    Prints a line for each node that would come up another, "NAME: WHAT: BOOTED → NOW"; with -v also those that would
    not.
    """
    from capsulekit.output import emit_json
    from provisioner.drifting import drift_of

    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    found = drift_of(options.paths, registry, chosen)
    if options.json:
        emit_json([drift.record() for drift in found])
    else:
        for drift in found:
            if drift.lines or options.verbose:
                click.echo("\n".join(drift.lines or [f"{drift.hostname}: as booted"]))
    complain(unmatched)
