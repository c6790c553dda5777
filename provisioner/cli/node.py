"""``capsulekit node``: add, list, set and watch nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import (
    chosen_for_change,
    chosen_for_reading,
    complain,
    confirm,
    open_site,
    say,
)

if TYPE_CHECKING:
    from provisioner.nodeviews import NodeDevices
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry

DRY_RUN = click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")
NODES = click.argument("nodes", nargs=-1, required=True)
SOME_NODES = click.argument("nodes", nargs=-1)


@click.group()
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
    say(options, f"Node {node.hostname!r} {'would be' if dry_run else 'has been'} added")


@cli.command()
@NODES
@DRY_RUN
@click.pass_obj
def delete(options: Options, nodes: tuple[str, ...], dry_run: bool) -> None:
    """Remove nodes permanently, after asking."""
    registry = open_site(options)
    chosen = chosen_for_change(registry, options, nodes)
    names = " ".join(node.hostname for node in chosen)
    if dry_run:
        say(options, f"Would be deleted: {names}")
        return
    if not (options.yes and options.quiet):
        click.echo(f"To be deleted: {names}", err=True)
    if not confirm(options, f"Delete {_count(len(chosen))}?"):
        raise click.Abort
    registry.delete_nodes([node.nodeid for node in chosen])
    for node in chosen:
        say(options, f"Node {node.hostname!r} has been deleted")


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
@click.argument("key")
@click.argument("value")
@NODES
@DRY_RUN
@click.pass_obj
def set_(options: Options, key: str, value: str, nodes: tuple[str, ...], dry_run: bool) -> None:
    """Set KEY to VALUE on NODES.

    KEY is hostname, groupname (or group), vnfs, enabled, debug, desc, boot or kargs. An empty VALUE clears vnfs,
    desc, boot and kargs.
    """
    registry = open_site(options)
    chosen = chosen_for_change(registry, options, nodes)
    with registry.db.rehearsal(dry_run):
        count = registry.set_nodes(key, value, [node.nodeid for node in chosen])
    say(options, f"{key} {'would be' if dry_run else 'has been'} set to {value!r} on {_count(count)}")


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
    for node in chosen:
        say(options, f"Node {node.hostname!r} {'would be' if dry_run else 'has been'} accepted")


@cli.command()
@SOME_NODES
@click.pass_obj
def show(options: Options, nodes: tuple[str, ...]) -> None:
    """Print every attribute as NAME:Key=value lines."""
    from capsulekit.output import emit_json
    from provisioner.nodeviews import show_lines, show_record

    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    found = _devices(registry)
    if options.json:
        emit_json([show_record(node, found(node)) for node in chosen])
    else:
        for node in chosen:
            click.echo("\n".join(show_lines(node, found(node))))
    complain(unmatched)


@cli.command()
@SOME_NODES
@click.pass_obj
def summary(options: Options, nodes: tuple[str, ...]) -> None:
    """Print the nodes' configuration as a table."""
    from capsulekit.output import emit_json
    from provisioner.nodeviews import record, summary_table

    chosen, unmatched = chosen_for_reading(open_site(options), options, nodes)
    if options.json:
        emit_json([record(node) for node in chosen])
    else:
        click.echo(summary_table(chosen))
    complain(unmatched)


@cli.command()
@SOME_NODES
@click.pass_obj
def status(options: Options, nodes: tuple[str, ...]) -> None:
    """Print where each node is on its way to ready, and when it was last heard of."""
    import time

    from capsulekit.output import emit_json
    from provisioner.nodeviews import status_record, status_table

    registry = open_site(options)
    chosen, unmatched = chosen_for_reading(registry, options, nodes)
    found = _devices(registry)
    boots = [(node, registry.boot_times(node.nodeid), found(node)) for node in chosen]
    if options.json:
        emit_json([status_record(*boot) for boot in boots])
    else:
        click.echo(status_table(boots, time.time()))
    complain(unmatched)


def _devices(registry: Registry) -> Callable[[Node], NodeDevices]:
    """What each node reported of its devices; a list that many nodes have is read once."""
    from functools import cache

    from provisioner.nodeviews import NodeDevices

    known, devices_of = registry.node_hardware(), cache(registry.devices_of)

    def found(node: Node) -> NodeDevices:
        if node.nodeid not in known:
            return NodeDevices()
        number, reported = known[node.nodeid]
        return NodeDevices(reported, devices_of(number))

    return found


def _count(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
