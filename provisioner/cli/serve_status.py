"""``capsulekit serve status``: whether the site is served, and what is wrong with it."""

from __future__ import annotations

import time

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import open_site, tell


@click.command()
@click.pass_obj
def cli(options: Options) -> None:
    """Tell whether the server runs, how dnsmasq does, and what could not be done for some nodes.

    Exit status 0: everything runs. 1: no server, or dnsmasq is down.
    """
    from provisioner.server.record import START, running_server, status_lines

    registry = open_site(options)
    leases = sum(lease.expires > time.time() for lease in registry.leases())
    registry.close()
    record = running_server(options.paths)
    if record is None:
        from capsulekit.errors import CapsulekitError

        raise CapsulekitError("no server runs for this site", hint=START)
    record["leases"] = leases
    tell(options, status_lines(record), record)
    if None in (record["dnsmasq"]["pid"], record["resolver"]["pid"]):
        raise click.exceptions.Exit(1)
