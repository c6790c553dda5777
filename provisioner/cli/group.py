"""``capsulekit group``: many nodes at once, by the group they are in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Group, Options
from capsulekit.errors import CapsulekitError
from provisioner.cli._complete import group_names, keys_and_values
from provisioner.cli._nodes import delete_asking, print_show, print_status, print_summary, set_on
from provisioner.cli._site import complain, count, no_such, open_site, roles_record, tell, warn_of_roles

if TYPE_CHECKING:
    from provisioner.registry.model import Node
    from provisioner.registry.registry import Registry

DRY_RUN = click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")
GROUPS = click.argument("groups", nargs=-1, required=True, shell_complete=group_names)
SOME_GROUPS = click.argument("groups", nargs=-1, shell_complete=group_names)


@click.group(cls=Group, name="group")
def cli() -> None:
    """Set, display and list the nodes of whole groups.

    GROUPS are names of groups, ranges like rack[1-4], patterns like 'rack*', and sets of them, as for nodes.
    A group is there as long as a node is in it.
    """


@cli.command("list")
@SOME_GROUPS
@click.pass_obj
def list_(options: Options, groups: tuple[str, ...]) -> None:
    """Print the names of the groups, one a line."""
    from capsulekit.output import emit_json

    chosen, _, unmatched = _read(open_site(options), groups)
    if options.json:
        emit_json(chosen)
    elif chosen:
        click.echo("\n".join(chosen))
    complain(unmatched, "group")


@cli.command()
@SOME_GROUPS
@click.pass_obj
def nodelist(options: Options, groups: tuple[str, ...]) -> None:
    """Print each group with its nodes (their MACs with -i) indented below it."""
    from capsulekit.output import emit_json

    chosen, nodes, unmatched = _read(open_site(options), groups)
    lists = {group: [n.nodeid if options.nodeid else n.hostname for n in nodes if n.groupname == group]
             for group in chosen}  # fmt: skip
    if options.json:
        emit_json(lists)
    else:
        for group, names in lists.items():
            click.echo("\n".join([f"{group}:", *(f"   {name}" for name in names)]))
    complain(unmatched, "group")


@cli.command("set")
@click.argument("key", shell_complete=keys_and_values)
@click.argument("value", shell_complete=keys_and_values)
@GROUPS
@DRY_RUN
@click.pass_obj
def set_(options: Options, key: str, value: str, groups: tuple[str, ...], dry_run: bool) -> None:
    """Set KEY to VALUE on all nodes of GROUPS.

    The keys are those of `node set`, and two differ: `groupname NEW OLD1 OLD2` merges the old groups into the new one,
    and kargs are the group's own, which every node has that is in the group now or comes into it later.
    """
    registry = open_site(options)
    chosen, nodes = _change(registry, groups)
    if key == "kargs":
        _set_kargs(options, registry, value, chosen, dry_run)
    elif key in ("group", "groupname"):
        _merge(options, registry, value, chosen, nodes, dry_run)
    else:
        set_on(options, registry, key, value, nodes, dry_run)


@cli.command()
@SOME_GROUPS
@click.pass_obj
def show(options: Options, groups: tuple[str, ...]) -> None:
    """Print every attribute of the groups (@GROUP:Key=value) and of their nodes (NAME:Key=value)."""
    registry = open_site(options)
    chosen, nodes, unmatched = _read(registry, groups)
    print_show(options, registry, nodes, chosen)
    complain(unmatched, "group")


@cli.command()
@SOME_GROUPS
@click.pass_obj
def status(options: Options, groups: tuple[str, ...]) -> None:
    """Print where each node of the groups is on its way to ready."""
    registry = open_site(options)
    _, nodes, unmatched = _read(registry, groups)
    print_status(options, registry, nodes)
    complain(unmatched, "group")


@cli.command()
@SOME_GROUPS
@click.pass_obj
def summary(options: Options, groups: tuple[str, ...]) -> None:
    """Print the configuration of the groups' nodes as a table."""
    _, nodes, unmatched = _read(open_site(options), groups)
    print_summary(options, nodes)
    complain(unmatched, "group")


@cli.command()
@GROUPS
@DRY_RUN
@click.pass_obj
def delete(options: Options, groups: tuple[str, ...], dry_run: bool) -> None:
    """Remove all nodes of the groups permanently, after asking."""
    registry = open_site(options)
    _, nodes = _change(registry, groups)
    delete_asking(options, registry, nodes, dry_run)


def _read(registry: Registry, words: Sequence[str]) -> tuple[tuple[str, ...], list[Node], tuple[str, ...]]:
    """The groups that words name, all when there are none, their nodes by group, and what matched nothing."""
    from provisioner.registry.selectors import select_names

    nodes = registry.nodes()
    known = sorted({node.groupname for node in nodes})
    selection = select_names(words or ["*"] * bool(known), known)
    chosen = [node for node in nodes if node.groupname in set(selection.names)]
    # sorted() is stable: by host name within a group, as the registry gives them.
    return selection.names, sorted(chosen, key=lambda node: node.groupname), selection.unmatched


def _change(registry: Registry, words: Sequence[str]) -> tuple[tuple[str, ...], list[Node]]:
    """The groups to change and their nodes; raises CapsulekitError naming every word that matched nothing."""
    chosen, nodes, unmatched = _read(registry, words)
    if unmatched:
        raise CapsulekitError(no_such(unmatched, "group") + "; nothing was changed", hint="see: capsulekit group list")
    return chosen, nodes


def _set_kargs(options: Options, registry: Registry, value: str, groups: Sequence[str], dry_run: bool) -> None:
    with registry.db.rehearsal(dry_run), registry.db.write():
        for group in groups:
            registry.set_group_kargs(group, value)
    lines = [f"kargs {'would be' if dry_run else 'has been'} set to {value!r} on {count(len(groups), 'group')}"]
    tell(options, lines, {"key": "kargs", "value": value, "groups": list(groups), "dry_run": dry_run})


def _merge(
    options: Options, registry: Registry, new: str, groups: Sequence[str], nodes: Sequence[Node], dry_run: bool
) -> None:
    """Put the nodes into group ``new``. The kernel arguments that the old groups have in common go with them."""
    own = {registry.group_kargs(group) for group in groups if group != new}
    moved = len(own) == 1 and not registry.group_kargs(new)
    with registry.db.rehearsal(dry_run), registry.db.write():
        registry.set_nodes("groupname", new, [node.nodeid for node in nodes])
        for group in groups:
            if group != new:
                registry.set_group_kargs(group, "")
        if moved:
            registry.set_group_kargs(new, *own)
        left = registry.roles_of("group", [group for group in groups if group != new])
    lines = [f"groupname {'would be' if dry_run else 'has been'} set to {new!r} on {count(len(nodes))}"]
    record = {"key": "groupname", "value": new, "nodes": [node.hostname for node in nodes], "dry_run": dry_run}
    tell(options, lines, record | {"groups": list(groups)} | roles_record(left))
    warn_of_roles(left)
    lost = sorted(own - {"", registry.group_kargs(new)}) if not moved else []
    if lost:
        click.echo("WARNING: kernel arguments of the old groups are gone: " + ", ".join(map(repr, lost)), err=True)
