"""What `info` tells: single settings under our names and the manual's, and an overview to begin a search with."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.redact import HIDDEN, is_secret, redact
from provisioner.registry.defaults import Defaults, load_defaults
from provisioner.registry.registry import Registry
from provisioner.siteconf import SiteConfig, read_site

# Where the manual's words are answered from. "statedir" ends with a slash there, and scripts glue names to it.
_PLACES: dict[str, Callable[[SitePaths], str]] = {
    "statedir": lambda paths: f"{paths.state}/",
    "sysconfdir": lambda paths: str(paths.config),
    "prefix": lambda paths: sys.prefix,  # noqa: ARG005
    "libdir": lambda paths: str(Path(__file__).parent),  # noqa: ARG005
}
# The manual's names of what has another one in site.toml or defaults.toml.
_MANUAL = {
    "master network device": "interface",
    "vnfs transfer master": "transfer_master",
    "vnfs transfer method": "transfer",
    "vnfs transfer prefix": "transfer_prefix",
    "group name": "group",
    "vnfs name": "vnfs",
}


def config_keys() -> list[str]:
    """Every key that config_value answers, sorted."""
    ours = [field.name for kind in (SiteConfig, Defaults) for field in fields(kind)]
    return sorted({*_PLACES, *_MANUAL, *ours})


def config_value(paths: SitePaths, key: str) -> str:
    """One setting as text; secrets are hidden. Raises CapsulekitError for an unknown key, NotInitialised."""
    config = read_site(paths)
    name = " ".join(key.lower().replace("_", " ").split())
    if name in _PLACES:
        return _PLACES[name](paths)
    column = _MANUAL.get(name, name.replace(" ", "_"))
    values = vars(load_defaults(paths)) | vars(config)
    if name in _MANUAL and not values.get(column):
        # Where no other server is named nodes fetch capsules from this one, which has its state where it says.
        values |= {"transfer_master": config.ip, "transfer_prefix": str(paths.state)}
    if column not in values:
        raise CapsulekitError(f"there is no setting {key!r}", hint="known: " + ", ".join(config_keys()))
    return _shown(column, values[column])


def system(paths: SitePaths, registry: Registry) -> Iterator[tuple[str, str]]:
    """(name, value) of what a search for a fault begins with: versions, this machine, settings, what there is."""
    yield "capsulekit", version("capsulekit")
    yield "python", platform.python_version()
    yield "system", _os_release()
    yield "kernel", f"{platform.release()} {platform.machine()}"
    yield "host", platform.node()
    yield "processors", str(os.cpu_count())
    for name, place in _PLACES.items():
        yield name, place(paths)
    for key, value in vars(read_site(paths)).items():
        yield f"site.{key}", _shown(key, value)
    for key, value in vars(load_defaults(paths)).items():
        yield f"defaults.{key}", _shown(key, value)
    for interface, addresses in _interfaces():
        yield f"interface.{interface}", addresses
    yield from _contents(registry)


def _contents(registry: Registry) -> Iterator[tuple[str, str]]:
    nodes = registry.nodes()
    yield "nodes", str(len(nodes))
    for state, number in sorted(Counter(node.status or "unknown" for node in nodes).items()):
        yield f"nodes.{state}", str(number)
    for group, number in sorted(Counter(node.groupname for node in nodes).items()):
        yield f"group.{group}", str(number)
    for capsule in registry.capsules():
        yield f"vnfs.{capsule.name}", capsule.identity
    for module, roles in registry.roles().items():
        yield f"module.{module}", " ".join(roles)


def _shown(key: str, value: object) -> str:
    if is_secret(key) and value:
        return HIDDEN
    return str(int(value)) if isinstance(value, bool) else redact(str(value))


def _os_release() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _interfaces() -> Iterator[tuple[str, str]]:
    """This machine's network interfaces: MAC and addresses."""
    from provisioner.netboot.interfaces import ipv4_addresses, ipv6_addresses

    addresses = [*ipv4_addresses(), *ipv6_addresses()]
    for folder in sorted(Path("/sys/class/net").glob("*/address")):
        name = folder.parent.name
        try:
            mac = folder.read_text(encoding="ascii").strip()
        except OSError:  # it went meanwhile
            continue
        yield name, " ".join([mac, *(address for interface, address in addresses if interface == name)])
