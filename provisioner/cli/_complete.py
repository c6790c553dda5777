"""What the shell offers for the words of a command: names of this site. Never asks, never fails, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from capsulekit.cli.main import Options

if TYPE_CHECKING:
    from provisioner.registry.registry import Registry

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _offered(names: Callable[[Registry, Options, click.Context], Iterable[str]], sets: bool = False) -> Completer:
    """A completer of the names that a registry gives; with ``sets`` also behind an operator of the selectors."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
        head, last = re.fullmatch(r"(.*[,!&^])?(.*)", incomplete, re.DOTALL).groups("") if sets else ("", incomplete)  # type: ignore[union-attr]
        try:
            known = names(_open(ctx), ctx.obj, ctx)
            return [head + name for name in known if name.startswith(last)]
        except Exception:
            # No site, an old registry, no right to read it: at a Tab there is nobody to tell.
            return []

    return complete


def _open(ctx: click.Context) -> Registry:
    from provisioner.registry.registry import open_registry

    return open_registry(ctx.obj.paths)


def _nodes(registry: Registry, options: Options, ctx: click.Context) -> list[str]:
    nodes = registry.nodes()
    names = [node.nodeid if options.nodeid else node.hostname for node in nodes]
    return names + [f"@{group}" for group in _groups(registry, options, ctx)]


def _groups(registry: Registry, options: Options, ctx: click.Context) -> list[str]:  # noqa: ARG001
    return sorted({node.groupname for node in registry.nodes()})


def _capsules(registry: Registry, options: Options, ctx: click.Context) -> list[str]:  # noqa: ARG001
    return [capsule.name for capsule in registry.capsules()]


def _modules(registry: Registry, options: Options, ctx: click.Context) -> list[str]:  # noqa: ARG001
    from provisioner.catalog import site_catalog

    return sorted({*(module.name for module in site_catalog(options.paths).modules()), *registry.roles()})


def _roles(registry: Registry, options: Options, ctx: click.Context) -> list[str]:
    """The roles a module is in when one is to be ended, else all there could be."""
    from provisioner.siteconf import read_site

    module = ctx.params.get("name")
    if ctx.info_name == "deactivate" and module:
        return registry.roles().get(module, [])
    nodes = registry.nodes()
    targets = ["all", *(f"group/{group}" for group in _groups(registry, options, ctx))]
    targets += [f"vnfs/{name}" for name in _capsules(registry, options, ctx)]
    targets += [f"node/{node.hostname}" for node in nodes]
    return [f"{state}/{target}" for state in read_site(options.paths).all_states for target in targets]


def _settings(registry: Registry, options: Options, ctx: click.Context) -> list[str]:
    """The keys of `set`, or, behind a key, the values that are there to choose from."""
    from provisioner.registry.settings import ALIASES, SETTABLE

    key = ctx.params.get("key")
    if key is None:
        return [*SETTABLE, *ALIASES, *registry.attribute_names]
    if key == "vnfs":
        return _capsules(registry, options, ctx)
    if key in ("group", "groupname"):
        return _groups(registry, options, ctx)
    return {"enabled": ["yes", "no"], "debug": ["0", "1", "2", "3"]}.get(key, [])


def _config_keys(registry: Registry, options: Options, ctx: click.Context) -> list[str]:  # noqa: ARG001
    from provisioner.siteinfo import config_keys

    return [key for key in config_keys() if " " not in key]


node_names = _offered(_nodes, sets=True)
group_names = _offered(_groups, sets=True)
capsule_names = _offered(_capsules)
module_names = _offered(_modules)
role_names = _offered(_roles)
keys_and_values = _offered(_settings)
setting_names = _offered(_config_keys)
