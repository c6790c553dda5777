"""``capsulekit init``: set up this machine as the master of a site."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import say

if TYPE_CHECKING:
    from provisioner.initsite import InitRequest

QUESTIONS = {
    "--interface": ("interface", "Network interface the nodes are on"),
    "--address": ("address", "This master's address there, like 10.0.0.1/16"),
    "--range": ("range_", "Addresses for nodes, START-END"),
}


@click.command()
@click.option("--interface", metavar="NAME", help="Network interface the nodes are on.")
@click.option("--address", metavar="IP/PREFIX", help="This master's address on it.")
@click.option("--range", "range_", metavar="START-END", help="Addresses given to nodes.")
@click.option("--domain", help="Domain of the nodes' names.")
@click.option("--policy", type=click.Choice(["auto", "accept"]), help="Boot unknown machines at once, or ask first.")
@click.option(
    "--stage1",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Folder that `stage1 build` wrote; once for each architecture.",
)
@click.option("--stage1-kargs", metavar="ARGS", help="Kernel arguments of stage 1.")
@click.option("--kargs", metavar="ARGS", help="Kernel arguments of every node's capsule.")
@click.option("--default-vnfs", metavar="NAME", help="Capsule of new nodes.")
@click.pass_obj
def cli(
    options: Options,
    interface: str | None,
    address: str | None,
    range_: str | None,
    domain: str | None,
    policy: str | None,
    stage1: tuple[Path, ...],
    stage1_kargs: str | None,
    kargs: str | None,
    default_vnfs: str | None,
) -> None:
    """Set up this machine as the master of a site; run again, it changes only what the flags say.

    The first run needs --interface, --address and --range, and asks for them at a terminal. Keys, nodes and
    comments in the settings are kept.
    """
    from provisioner.initsite import InitRequest

    init_asking(
        options,
        InitRequest(interface, address, range_, domain, policy, stage1, stage1_kargs, kargs, default_vnfs),
    )


def init_asking(options: Options, request: InitRequest) -> None:
    """Run init; at a terminal, ask for what is missing first."""
    from provisioner.initsite import init_site, missing_flags

    if sys.stdin.isatty() and not options.yes:
        for flag in missing_flags(options.paths, request):
            field, question = QUESTIONS[flag]
            answer: dict[str, Any] = {field: click.prompt(question, err=True)}
            request = replace(request, **answer)
    result = init_site(options.paths, request)
    site = result.site
    state = "is ready" if result.new else "is up to date"
    if result.changed and not result.new:
        state = f"has changed ({', '.join(result.changed)})"
    say(options, f"Site {site.name!r} {state}: {options.paths.config}")
    say(options, f"Nodes on {site.interface} get {site.range_start}-{site.range_end} from {site.address}")
    for warning in result.warnings:
        click.echo(f"WARNING: {warning}", err=True)
