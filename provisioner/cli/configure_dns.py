"""``capsulekit configure dns``: who answers the names that are not the site's, and who asks us."""

from __future__ import annotations

from pathlib import Path

import click

from capsulekit.cli.main import Options
from provisioner.cli._write import DRY_RUN, RELOAD, load, take_on, write_files


@click.command()
@click.option("--upstream", metavar="SERVERS", help='Addresses separated by spaces, a resolv.conf, or "" for nobody.')
@click.option("--domain", help="Domain of the nodes' names.")
@click.option("--local/--no-local", default=None, help="This master itself asks our name server first, on 127.0.0.1.")
@click.option(
    "--resolv-conf",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/resolv.conf"),
    show_default=True,
    help="The file that --local and --no-local change.",
)
@RELOAD
@DRY_RUN
@click.pass_obj
def cli(
    options: Options,
    upstream: str | None,
    domain: str | None,
    local: bool | None,
    resolv_conf: Path,
    reload: bool,
    dry_run: bool,
) -> None:
    """Change how names are answered.

    The nodes' names and those of the hosts file are answered here; all others are asked of the servers in the
    master's resolv.conf, unless told otherwise.
    """
    from provisioner.netboot.configure import resolver_change, site_change

    load(options)
    given = {"dns_upstream": upstream, "domain": domain, "local_resolver": local}
    settings = {key: value for key, value in given.items() if value is not None}
    changes = [site_change(options.paths, settings)]
    if local is not None:
        changes.append(resolver_change(resolv_conf, local))
    if write_files(options, changes, dry_run=dry_run):
        take_on(options, reload=reload)
