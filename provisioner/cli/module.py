"""``capsulekit module``: which modules there are and where they are activated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options
from capsulekit.errors import CapsulekitError
from provisioner.cli._site import open_site, say

if TYPE_CHECKING:
    from provisioner.catalog import Module
    from provisioner.registry.registry import Registry

DRY_RUN = click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")


@click.group()
def cli() -> None:
    """Display, activate and deactivate modules.

    A ROLE says when and where a module runs: STATE/all, STATE/group/G, STATE/vnfs/V or STATE/node/N, STATE being
    init (before the handoff) or ready (on the running node).
    """


@cli.command("list")
@click.pass_obj
def list_(options: Options) -> None:
    """Print the installed modules, one a line; -v adds version and purpose."""
    from capsulekit.output import emit_json

    open_site(options)
    modules = _catalog()
    if options.json:
        emit_json([{"name": m.name, "version": m.version, "summary": m.summary} for m in modules.values()])
        return
    for module in modules.values():
        click.echo(f"{module.name:<15} {module.version:<8} {module.summary}" if options.verbose else module.name)


@cli.command()
@click.argument("modules", nargs=-1)
@click.pass_obj
def summary(options: Options, modules: tuple[str, ...]) -> None:
    """Print each module and the roles it is activated in."""
    from capsulekit.output import emit_json

    registry = open_site(options)
    roles = registry.roles()
    known = sorted({*_catalog(), *roles})
    shown = {name: roles.get(name, []) for name in known if not modules or name in modules}
    if options.json:
        emit_json(shown)
    else:
        for name, active in shown.items():
            click.echo("\n".join([f"{name}:", *(f"        {role}" for role in active)]))
    unknown = [name for name in modules if name not in known]
    if unknown:
        raise CapsulekitError("there is no module " + ", ".join(repr(name) for name in unknown))


@cli.command()
@click.argument("name")
@click.argument("roles", nargs=-1, metavar="[ROLE]...")
@DRY_RUN
@click.pass_obj
def activate(options: Options, name: str, roles: tuple[str, ...], dry_run: bool) -> None:
    """Activate a module in the given roles, or in its own default ones."""
    from provisioner.siteconf import read_site

    registry = open_site(options)
    modules = _catalog()
    if name not in modules:
        raise CapsulekitError(f"there is no module {name!r}", hint="see: capsulekit module list")
    wanted = list(dict.fromkeys(roles or modules[name].roles))
    if not wanted:
        raise CapsulekitError(f"module {name!r} has no default role", hint=f"capsulekit module activate {name} ROLE")
    with registry.db.rehearsal(dry_run):
        new = registry.activate(name, wanted, read_site(options.paths).all_states)
    would = "would be" if dry_run else "has been"
    for role in wanted:
        say(options, f"Module {name!r} {f'{would} activated' if role in new else 'was activated already'} in {role}")
    for warning in _doubts(registry, modules[name], wanted):
        click.echo(f"WARNING: {warning}", err=True)


@cli.command()
@click.argument("name")
@click.argument("roles", nargs=-1, metavar="[ROLE]...")
@DRY_RUN
@click.pass_obj
def deactivate(options: Options, name: str, roles: tuple[str, ...], dry_run: bool) -> None:
    """Deactivate a module in the given roles, or in all it is activated in."""
    registry = open_site(options)
    if name not in registry.roles():
        raise CapsulekitError(f"module {name!r} is not activated", hint="see: capsulekit module summary")
    with registry.db.rehearsal(dry_run):
        gone = registry.deactivate(name, roles or None)
    for role in gone:
        say(options, f"Module {name!r} {'would be' if dry_run else 'has been'} deactivated in {role}")


def _catalog() -> dict[str, Module]:
    """The installed modules by name, sorted."""
    from provisioner.catalog import Catalog

    return {module.name: module for module in Catalog().modules()}


def _doubts(registry: Registry, module: Module, roles: list[str]) -> Iterator[str]:
    """A role may name what does not exist yet: say so, since it may as well be a slip."""
    nodes = registry.nodes()
    known = {
        "group": {n.groupname for n in nodes},
        "vnfs": {c.name for c in registry.capsules()},
        "node": {n.hostname for n in nodes} | {n.name for n in nodes},
    }
    for role in roles:
        state, scope, target = (*role.split("/", 2), "")[:3]
        if scope in known and target not in known[scope]:
            yield f"{role}: there is no {scope} {target!r} yet"
        if state not in module.states:
            yield f"{role}: module {module.name!r} does nothing in state {state!r}"
