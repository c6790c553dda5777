"""``configure dhcp`` and, under the manual's other word, ``configure dhcpd``."""

from __future__ import annotations

import sys

import click

from capsulekit.cli.main import Options
from provisioner.cli._write import DRY_RUN, RELOAD, load, take_on, write_files


@click.command("dhcp")
@click.option("--interface", metavar="NAME", help="The interface the nodes are on; DHCP is answered on no other.")
@click.option("--address", metavar="IP/PREFIX", help="This master's address on it.")
@click.option("--range", "range_", metavar="START-END", help="Addresses for machines without a fixed one.")
@click.option("--domain", help="Domain of the nodes' names.")
@click.option(
    "--mode",
    type=click.Choice(["own", "proxy", "off"]),
    help="Give addresses; or boot files only, beside another server; or nothing by DHCP.",
)
@RELOAD
@DRY_RUN
@click.pass_obj
def configure_dhcp(
    options: Options,
    interface: str | None,
    address: str | None,
    range_: str | None,
    domain: str | None,
    mode: str | None,
    reload: bool,
    dry_run: bool,
) -> None:
    """Change how nodes get addresses; without options it asks at a terminal.

    Further networks are described in networks.toml beside site.toml. A fixed address is a node's:
    capsulekit node set address IP NODE, or a line with its name in the master's hosts file.
    """
    from provisioner.netboot.configure import range_settings, site_change

    site = load(options)
    given = {"interface": interface, "address": address, "domain": domain, "dhcp": mode}
    settings = {key: value for key, value in given.items() if value is not None}
    if not settings and range_ is None and sys.stdin.isatty() and not options.yes:
        start = click.prompt("First address for nodes without a fixed one", default=site.range_start, err=True)
        end = click.prompt("Last address", default=site.range_end, err=True)
        settings["domain"] = click.prompt("Domain of the nodes' names", default=site.domain, err=True)
        range_ = f"{start}-{end}"
    if range_ is not None:
        settings |= range_settings(range_)
    if write_files(options, [site_change(options.paths, settings)], dry_run=dry_run):
        take_on(options, reload=reload)
