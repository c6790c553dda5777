"""What the commands of nodes and of groups do alike: printing chosen nodes, setting an attribute, deleting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from provisioner.cli._site import confirm, count, roles_record, tell, warn_of_roles

if TYPE_CHECKING:
    from provisioner.nodeviews import NodeDevices
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry


def print_show(options: Options, registry: Registry, nodes: Sequence[Node], groups: Sequence[str] = ()) -> None:
    """Every attribute as NAME:Key=value lines; those of ``groups`` first, under @GROUP."""
    from capsulekit.output import emit_json
    from provisioner.nodeviews import show_lines, show_record

    found, own = devices_of_nodes(registry), registry.all_attributes()
    if options.json:
        emit_json([show_record(node, found(node), own.get(node.nodeid, {})) for node in nodes])
        return
    for group in groups:
        click.echo(f"@{group}:Kargs={registry.group_kargs(group)}")
    for node in nodes:
        click.echo("\n".join(show_lines(node, found(node), own.get(node.nodeid, {}))))


def print_summary(options: Options, nodes: Sequence[Node]) -> None:
    """The nodes' configuration as a table."""
    from capsulekit.output import emit_json
    from provisioner.nodeviews import record, summary_table

    if options.json:
        emit_json([record(node) for node in nodes])
    else:
        click.echo(summary_table(nodes))


def print_status(options: Options, registry: Registry, nodes: Sequence[Node]) -> None:
    """Where each node is on its way to ready, as a table; a node that never told its address has its lease's."""
    import time
    from dataclasses import replace

    from capsulekit.output import emit_json
    from provisioner.nodeviews import status_record, status_table

    found = devices_of_nodes(registry)
    leased = {lease.nodeid: lease.address for lease in registry.leases() if lease.expires > time.time()}
    nodes = [node if node.ipaddr else replace(node, ipaddr=leased.get(node.nodeid, "")) for node in nodes]
    times = registry.all_boot_times([node.nodeid for node in nodes])
    boots = [(node, times.get(node.nodeid, {}), found(node)) for node in nodes]
    if options.json:
        emit_json([status_record(*boot) for boot in boots])
    else:
        click.echo(status_table(boots, time.time()))


def set_on(options: Options, registry: Registry, key: str, value: str, nodes: Sequence[Node], dry_run: bool) -> None:
    """Set an attribute on nodes, and tell."""
    if key == "address" and value.strip():
        _must_be_served(options, value.strip(), nodes)
    with registry.db.rehearsal(dry_run):
        number = registry.set_nodes(key, value, [node.nodeid for node in nodes])
        left = _roles_left(registry, nodes) if key == "hostname" else []
    would = "would be" if dry_run else "has been"
    names = [node.hostname for node in nodes]
    record = {"key": key, "value": value, "nodes": names, "dry_run": dry_run}
    tell(options, [f"{key} {would} set to {value!r} on {count(number)}"], record | roles_record(left))
    warn_of_roles(left)


def _must_be_served(options: Options, address: str, nodes: Sequence[Node]) -> None:
    """Refuse an address that our DHCP can't give to one node for good; raises CapsulekitError."""
    from provisioner.netboot.networks import load_networks, require_fixed
    from provisioner.siteconf import load_site

    site = load_site(options.paths)
    if site.dhcp == "own" and nodes:
        who = f"node {nodes[0].hostname} ({nodes[0].nodeid})"
        require_fixed(load_networks(options.paths, site), address, who)


def delete_asking(options: Options, registry: Registry, nodes: Sequence[Node], dry_run: bool) -> None:
    """List the nodes, ask, and remove them. Raises click.Abort when the answer is no."""
    names = [node.hostname for node in nodes]
    if dry_run:
        with registry.db.rehearsal():
            registry.delete_nodes([node.nodeid for node in nodes])
            left = _roles_left(registry, nodes)
        lines = ["Would be deleted: " + " ".join(names)]
    else:
        if not (options.yes and options.quiet):
            click.echo("To be deleted: " + " ".join(names), err=True)
        if not confirm(options, f"Delete {count(len(nodes))}?"):
            raise click.Abort
        registry.delete_nodes([node.nodeid for node in nodes])
        left = _roles_left(registry, nodes)
        lines = [f"Node {name!r} has been deleted" for name in names]
    tell(options, lines, {"deleted": names, "dry_run": dry_run} | roles_record(left))
    warn_of_roles(left)


def _roles_left(registry: Registry, nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """(module, role) of what is activated for names that ``nodes`` had and no node has now."""
    left = registry.roles_of("node", {name for node in nodes for name in (node.hostname, node.name)})
    taken = {name for node in registry.each_node() for name in (node.hostname, node.name)} if left else set()
    return [(module, role) for module, role in left if role.split("/", 2)[2] not in taken]


def devices_of_nodes(registry: Registry) -> Callable[[Node], NodeDevices]:
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
