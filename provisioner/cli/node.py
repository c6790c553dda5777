"""``capsulekit node``: add, list, set and watch nodes."""

from __future__ import annotations

import click

from capsulekit.cli.main import Group, Options
from provisioner.cli._complete import keys_and_values, node_names
from provisioner.cli._nodes import delete_asking, print_show, print_status, print_summary, set_on
from provisioner.cli._site import chosen_for_change, chosen_for_reading, complain, open_site, tell

DRY_RUN = click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")
NODES = click.argument("nodes", nargs=-1, required=True, shell_complete=node_names)
SOME_NODES = click.argument("nodes", nargs=-1, shell_complete=node_names)


@click.group(cls=Group, name="node")
def cli() -> None:
    """Set, display and list node attributes and states.

    NODES are names, ranges like n00[05-20], patterns like 'n0*00', groups like @rack1, and sets of them:
    a,b  a!b  'a&b'  a^b. With -i they are MAC addresses.
    """


@cli.command()
@click.argument("mac")
@click.argument("name", required=False)
@DRY_RUN
@click.pass_obj
def add(options: Options, mac: str, name: str | None, dry_run: bool) -> None:
    """Add the machine with this MAC, under NAME or the first free name."""
    from provisioner.registry.defaults import load_defaults

    registry = open_site(options)
    with registry.db.rehearsal(dry_run):
        node = registry.add_node(mac, name, defaults=load_defaults(options.paths))
    lines = [f"Node {node.hostname!r} {'would be' if dry_run else 'has been'} added"]
    tell(options, lines, {"added": node.hostname, "nodeid": node.nodeid, "name": node.name, "dry_run": dry_run})


@cli.command()
@NODES
@DRY_RUN
@click.pass_obj
def delete(options: Options, nodes: tuple[str, ...], dry_run: bool) -> None:
    """Remove nodes permanently, after asking."""
    registry = open_site(options)
    delete_asking(options, registry, chosen_for_change(registry, options, nodes), dry_run)


@cli.command("list")
@SOME_NODES
@click.pass_obj
def list_(options: Options, nodes: tuple[str, ...]) -> None:
    """Print the names of the nodes (their MACs with -i), one a line."""
    from capsulekit.output import emit_json

    chosen, unmatched = chosen_for_reading(open_site(options), options, nodes)
    names = [node.nodeid if options.nodeid else node.hostname for node in chosen]
    if options.json:
        emit_json(names)
    elif names:
        click.echo("\n".join(names))
    complain(unmatched)


@cli.command("set")
@click.argument("key", shell_complete=keys_and_values)
@click.argument("value", shell_complete=keys_and_values)
@NODES
@DRY_RUN
@click.pass_obj
def set_(options: Options, key: str, value: str, nodes: tuple[str, ...], dry_run: bool) -> None:
    """Set KEY to VALUE on NODES.

    KEY is hostname, groupname (or group), vnfs, enabled, debug, desc, boot, kargs, address, or one of the site's own
    attributes. An empty VALUE clears vnfs, desc, boot, kargs, address and the site's own.
    """
    registry = open_site(options)
    set_on(options, registry, key, value, chosen_for_change(registry, options, nodes), dry_run)


@cli.command()
@NODES
@DRY_RUN
@click.pass_obj
def accept(options: Options, nodes: tuple[str, ...], dry_run: bool) -> None:
    """Let nodes go on that wait at the boot screen to be accepted."""
    registry = open_site(options)
    chosen = chosen_for_change(registry, options, nodes)
    with registry.db.rehearsal(dry_run):
        registry.accept_nodes([node.nodeid for node in chosen])
    names = [node.hostname for node in chosen]
    lines = [f"Node {name!r} {'would be' if dry_run else 'has been'} accepted" for name in names]
    tell(options, lines, {"accepted": names, "dry_run": dry_run})


@cli.command()
@SOME_NODES
@click.pass_obj
def show(options: Options, nodes: tuple[str, ...]) -> None:
    """Print every attribute as NAME:Key=value lines."""
    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    print_show(options, registry, chosen)
    complain(unmatched)


@cli.command()
@SOME_NODES
@click.pass_obj
def summary(options: Options, nodes: tuple[str, ...]) -> None:
    """Print the nodes' configuration as a table."""
    chosen, unmatched = chosen_for_reading(open_site(options), options, nodes)
    print_summary(options, chosen)
    complain(unmatched)


@cli.command()
@SOME_NODES
@click.pass_obj
def status(options: Options, nodes: tuple[str, ...]) -> None:
    """Print where each node is on its way to ready, and when it was last heard of."""
    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    print_status(options, registry, chosen)
    complain(unmatched)
