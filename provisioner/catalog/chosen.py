"""What the activated modules bring to one node in one state: each module once, its scripts in order, its files.

The desk sends exactly this, and ``module show --for NODE`` prints exactly this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from capsulekit.sitepaths import SitePaths
from provisioner.catalog.config import Part, has_lines, joined, parts, settings
from provisioner.catalog.found import Catalog
from provisioner.catalog.model import DataFile, Given, Module, Script, Value
from provisioner.catalog.providers import Asked
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.registry.roles import Role
from provisioner.siteconf import SiteConfig

NEARNESS = ("vnfs", "all", "group", "node")
OWN = "vnfs"  # the module that a capsule's own scripts count as
SETTINGS_FILE = "settings"


@dataclass(frozen=True)
class Chosen:
    """A module that runs on a node, and the nearest of the roles that say so."""

    module: Module
    role: str


@dataclass(frozen=True)
class Brought:
    """Scripts in the order they run, files by module and name, and the modules themselves."""

    chosen: tuple[Chosen, ...] = ()
    scripts: tuple[Script, ...] = ()
    data: tuple[DataFile, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a node's files may be made of; ``nodes`` is only called by modules that write about all of them."""

    paths: SitePaths
    config: SiteConfig
    catalog: Catalog
    nodes: Callable[[], Sequence[Node]]


def nearest_roles(active: Mapping[str, Iterable[str]], node: Node, state: str) -> dict[str, str]:
    """Module → the nearest of its roles that are for this node in this state; modules sorted by name."""
    found: dict[str, str] = {}
    for module, roles in sorted(active.items()):
        covering = [role for role in map(read_role, roles) if role.state == state and role.covers(node)]
        if covering:
            best = max(covering, key=lambda role: (NEARNESS.index(role.scope), role.target))
            found[module] = "/".join(filter(None, (best.state, best.scope, best.target)))
    return found


def read_role(stored: str) -> Role:
    """A role as the registry keeps it; what is in it was checked when it was activated."""
    state, scope, target = (*stored.split("/", 2), "", "")[:3]
    return Role(state, scope, target)


def brought(
    context: Context, active: Mapping[str, Iterable[str]], node: Node, state: str, capsule: InstalledCapsule | None
) -> Brought:
    """What runs on a node in a state. Raises CapsulekitError naming the module that is not there or not right."""
    chosen = []
    for name, role in nearest_roles(active, node, state).items():
        module = context.catalog.module(name)
        if module is None:
            raise CapsulekitError(
                f"module {name!r} is activated in {role} but not installed",
                hint=f"capsulekit module import FILE.pmod, or: capsulekit module deactivate {name}",
            )
        if module.scripts_for(state):
            chosen.append(Chosen(module, role))
    scripts = [script for one in chosen for script in one.module.scripts_for(state)]
    data = [file for one in chosen for file in files_of(context, one.module, node, state, capsule)]
    return Brought(tuple(chosen), tuple(in_order(scripts)), tuple(data))


def written(catalog: Catalog, active: Mapping[str, Iterable[str]], node: Node, state: str) -> frozenset[str]:
    """The paths that the modules of a node may write in a state, as they say themselves; of unknown modules none."""
    modules = (catalog.module(name) for name in nearest_roles(active, node, state))
    return frozenset(write.path for one in modules if one and one.scripts_for(state) for write in one.writes)


def in_order(scripts: Iterable[Script]) -> list[Script]:
    """Number order; scripts of one number by name, then by module."""
    return sorted(scripts, key=lambda script: (script.order, script.name, script.module))


def files_of(
    context: Context, module: Module, node: Node, state: str, capsule: InstalledCapsule | None
) -> tuple[DataFile, ...]:
    """The files that a module gives to one node, sorted by name. They may be secret: never log them."""
    try:
        given = list(_given(context, module, node, state, capsule))
    except CapsulekitError as wrong:
        raise CapsulekitError(f"module {module.name}: {wrong.message}", hint=wrong.hint) from wrong
    return tuple(
        DataFile(module.name, one.name, one.content, sha256_bytes(one.content), one.target, one.note, one.secret)
        for one in sorted(given, key=lambda one: one.name)
        if one.content
    )


def _given(
    context: Context, module: Module, node: Node, state: str, capsule: InstalledCapsule | None
) -> Iterable[Given]:
    found = parts(context.paths, module, node) if module.text else []
    values = settings(context.paths, module, node)
    if module.data:
        asked = Asked(context.paths, context.config, node, state, values, joined(module, found), context.nodes, capsule)
        yield from import_module(f"provisioner.catalog.providers.{module.data}").files_for(asked)
    elif module.settings:
        yield _settings_file(module, values)
    elif module.text and module.text.file:
        yield from _texts(module, found)


def _settings_file(module: Module, values: Mapping[str, Value]) -> Given:
    text = "".join(f"{key}={_plain(value)}\n" for key, value in values.items())
    return Given(SETTINGS_FILE, text.encode(), secret=any(one.secret for one in module.settings))


def _plain(value: Value) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _texts(module: Module, found: list[Part]) -> Iterable[Given]:
    assert module.text is not None
    file, secret = module.text.file, module.text.secret
    target = next((write.path for write in module.writes if write.data == file), "")
    note = next((write.note for write in module.writes if write.data == file), "")
    if module.text.join == "each":
        # Numbered, so that a folder's listing has their order.
        for number, one in enumerate(found):
            if has_lines(one.content):
                yield Given(f"{number}-{one.scope}", one.content, note=note, secret=secret)
    else:
        yield Given(file, joined(module, found), target, note, secret)
