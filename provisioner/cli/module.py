"""``capsulekit module``: which modules there are and where they are activated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Group, Options
from capsulekit.errors import CapsulekitError
from provisioner.cli._complete import module_names, role_names
from provisioner.cli._site import complain, matching, open_site, tell

if TYPE_CHECKING:
    from provisioner.catalog import Module
    from provisioner.registry.registry import Registry

DRY_RUN = click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")


@click.group(cls=Group, name="module")
def cli() -> None:
    """Import, display, activate and deactivate modules.

    MODULES are names, patterns like 'host*', and sets of them, as for nodes.
    A ROLE says when and where a module runs: STATE/all, STATE/group/G, STATE/vnfs/V or STATE/node/N, STATE being
    init (before the handoff), ready (on the running node), or one of the site's own.
    """


@cli.command("list")
@click.argument("modules", nargs=-1, shell_complete=module_names)
@click.pass_obj
def list_(options: Options, modules: tuple[str, ...]) -> None:
    """Print the installed modules, one a line; -v adds version, author's key and purpose."""
    from capsulekit.output import emit_json
    from provisioner.catalog import site_catalog

    open_site(options)
    catalog = site_catalog(options.paths)
    known = {module.name: module for module in catalog.modules()}
    shown, unknown = matching(modules, {*known, *catalog.broken()})
    found = [known[name] for name in shown if name in known]
    if options.json:
        emit_json([
            {"name": m.name, "version": m.version, "summary": m.summary, "key_id": m.key_id, "digest": m.digest}
            for m in found
        ])  # fmt: skip
    else:
        for module in found:
            by = module.key_id or "shipped"
            line = f"{module.name:<15} {module.version:<8} {by:<16} {module.summary}"
            click.echo(line if options.verbose else module.name)
    for name, why in catalog.broken().items():
        if name in shown:
            click.echo(f"WARNING: module {name!r} can't be used: {why.message}", err=True)
    complain(unknown, "module")


@cli.command()
@click.argument("modules", nargs=-1, shell_complete=module_names)
@click.pass_obj
def summary(options: Options, modules: tuple[str, ...]) -> None:
    """Print each module and the roles it is activated in."""
    from capsulekit.output import emit_json
    from provisioner.catalog import site_catalog

    registry = open_site(options)
    roles = registry.roles()
    catalog = site_catalog(options.paths)
    names, unknown = matching(modules, {*(m.name for m in catalog.modules()), *catalog.broken(), *roles})
    shown = {name: roles.get(name, []) for name in names}
    if options.json:
        emit_json(shown)
    else:
        for name, active in shown.items():
            click.echo("\n".join([f"{name}:", *(f"        {role}" for role in active)]))
    complain(unknown, "module")


@cli.command()
@click.argument("modules", nargs=-1, shell_complete=module_names)
@click.pass_obj
def states(options: Options, modules: tuple[str, ...]) -> None:
    """Print each role and the modules that are activated in it."""
    from capsulekit.output import emit_json

    active = open_site(options).roles()
    names, unknown = matching(modules, active)
    shown: dict[str, list[str]] = {}
    for role, module in sorted((role, name) for name in names for role in active[name]):
        shown.setdefault(role, []).append(module)
    if options.json:
        emit_json(shown)
    else:
        for role, inside in shown.items():
            click.echo("\n".join([f"{role}:", *(f"   {name}" for name in inside)]))
    complain(unknown, "module")


@cli.command()
@click.argument("name", shell_complete=module_names)
@click.argument("roles", nargs=-1, metavar="[ROLE]...", shell_complete=role_names)
@DRY_RUN
@click.pass_obj
def activate(options: Options, name: str, roles: tuple[str, ...], dry_run: bool) -> None:
    """Activate a module in the given roles, or in its own default ones, and make its settings to be edited."""
    from provisioner.catalog import admin, site_catalog
    from provisioner.siteconf import read_site

    registry = open_site(options)
    module = site_catalog(options.paths).require(name)
    wanted = list(dict.fromkeys(roles or module.roles))
    if not wanted:
        raise CapsulekitError(f"module {name!r} has no default role", hint=f"capsulekit module activate {name} ROLE")
    states = read_site(options.paths).all_states
    done = admin.activate(options.paths, registry, module, wanted, states, dry_run)
    would = "would be" if dry_run else "has been"
    lines = [
        f"Module {name!r} {f'{would} activated' if role in done.new else 'was activated already'} in {role}"
        for role in wanted
    ]
    folder = admin.settings_folder(options.paths, module)
    if folder and done.made:
        lines.append(f"Its settings are in {folder}")
    tell(options, lines, {"module": name, "roles": wanted, "new": list(done.new), "dry_run": dry_run})
    for warning in _doubts(registry, module, wanted):
        click.echo(f"WARNING: {warning}", err=True)


@cli.command()
@click.argument("name", shell_complete=module_names)
@click.argument("roles", nargs=-1, metavar="[ROLE]...", shell_complete=role_names)
@DRY_RUN
@click.pass_obj
def deactivate(options: Options, name: str, roles: tuple[str, ...], dry_run: bool) -> None:
    """Deactivate a module in the given roles, or in all it is activated in. Its settings stay."""
    registry = open_site(options)
    if name not in registry.roles():
        raise CapsulekitError(f"module {name!r} is not activated", hint="see: capsulekit module summary")
    with registry.db.rehearsal(dry_run):
        gone = registry.deactivate(name, roles or None)
    would = "would be" if dry_run else "has been"
    lines = [f"Module {name!r} {would} deactivated in {role}" for role in gone]
    tell(options, lines, {"module": name, "roles": list(gone), "dry_run": dry_run})


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
