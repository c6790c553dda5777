"""``serve reload`` and, by the word of the manual's own script, ``reload``: take on changed settings."""

from __future__ import annotations

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import tell


@click.command("reload")
@click.pass_obj
def reload(options: Options) -> None:
    """Take on site.toml, networks.toml, dnsmasq.d, the hosts file and resolv.conf as they are now.

    What does not work is refused with its reason, and the server goes on as before. dnsmasq is restarted only where
    its main file changed. Nodes, names and addresses of the registry are followed without this.
    """
    from provisioner.server.record import reload_server
    from provisioner.siteconf import load_site

    load_site(options.paths)  # a site that is none, or a slip in the file, is said here and now
    record = reload_server(options.paths)
    warnings = [f"WARNING: {problem}" for problem in record["problems"]]
    tell(options, [*warnings, f"The network manager is up to date: dnsmasq {record['reload_done']}"], record)
