"""First set-up of a master, and later changes to it: settings, defaults, registry, certificates, stage 1."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import atomic_write, exclusive_lock
from capsulekit.sitepaths import SitePaths
from provisioner.flattoml import render_flat, update_flat
from provisioner.netboot import stage1
from provisioner.registry.db import check_place
from provisioner.registry.defaults import Defaults, load_defaults
from provisioner.siteconf import COMMENTS, NotInitialised, SiteConfig, check_site, read_site, registry_place, site_file

# Settings a first run must be told, and the flag that tells each.
REQUIRED = {"interface": "--interface", "address": "--address", "range_start": "--range", "range_end": "--range"}
DEFAULTS_COMMENTS = {
    "node_name": "Names of new nodes: HOST[.CLUSTER], the # being the number. The lowest free one is taken.",
    "group": "Group of new nodes.",
    "vnfs": 'Capsule of new nodes, as "capsulekit vnfs list" prints it; empty: none.',
    "enabled": "Whether new nodes may boot at once.",
    "first_node": "The lowest number to use.",
}


@dataclass(frozen=True)
class InitRequest:
    """What the command line says; None: nothing, keep what is there or take the default."""

    interface: str | None = None
    address: str | None = None
    range_: str | None = None  # START-END
    domain: str | None = None
    policy: str | None = None
    stage1: tuple[Path, ...] = ()  # folders that `stage1 build` wrote, one for each architecture
    stage1_kargs: str | None = None
    kargs: str | None = None
    default_vnfs: str | None = None
    dhcp: str | None = None  # own, proxy, off
    look_for_dhcp: bool = False  # refuse an interface on which another DHCP server answers

    def changes(self) -> dict[str, Any]:
        """The settings of site.toml it names. Raises UsageError for a range that is none."""
        named = {key: getattr(self, key) for key in ("interface", "address", "domain", "policy", "dhcp")}
        named |= {"stage1_kargs": self.stage1_kargs, "kargs": self.kargs}
        if self.range_ is not None:
            start, dash, end = self.range_.partition("-")
            if not dash:
                raise UsageError(f"--range {self.range_!r} is not START-END", hint="like 10.0.1.1-10.0.1.250")
            named |= {"range_start": start.strip(), "range_end": end.strip()}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class InitResult:
    """The site as it is now; ``new`` when it was not there before, else ``changed`` names what is not as it was."""

    site: SiteConfig
    new: bool
    changed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def current_site(paths: SitePaths) -> SiteConfig | None:
    """The site's settings, or None before the first init."""
    try:
        return read_site(paths)
    except NotInitialised:
        return None


def missing_flags(paths: SitePaths, request: InitRequest) -> list[str]:
    """The flags a run still needs, in the order of the manual page; [] when it can go on."""
    known = current_site(paths) or SiteConfig()
    changes = request.changes()
    # Where another server gives the addresses, none are ours to give.
    given = () if (request.dhcp or known.dhcp) == "own" else ("range_start", "range_end")
    needed = {key: flag for key, flag in REQUIRED.items() if key not in given}
    return list(dict.fromkeys(flag for key, flag in needed.items() if not (changes.get(key) or getattr(known, key))))


def init_site(paths: SitePaths, request: InitRequest, *, dry_run: bool = False) -> InitResult:
    """Make the site, or apply what ``request`` says to the one that is there; keys, nodes and comments are kept.

    Everything is checked before anything is written (all that ``dry_run`` does); each file is written in one step and a
    killed run can be run again. Raises UsageError naming missing flags, CapsulekitError for values that cannot work.
    """
    missing = missing_flags(paths, request)
    if missing:
        raise UsageError("a new site needs " + " and ".join(missing), hint="see: capsulekit init --help")
    old = current_site(paths)
    site = replace(old or SiteConfig(), **request.changes())
    check_site(site, "init" if old is None else str(site_file(paths)))
    defaults = load_defaults(paths)
    sources = stage1.read_sources(request.stage1)
    registry = registry_place(paths, site)
    check_place(registry)
    request, warnings = _default_vnfs(registry, request)
    if request.look_for_dhcp and (old is None or (old.interface, old.dhcp) != (site.interface, site.dhcp)):
        warnings += refuse_foreign_dhcp(site)
    changed = (*_changed(old or site, site, defaults, request), *(f"stage 1 {source.arch}" for source in sources))
    if dry_run:
        return InitResult(site, old is None, changed, warnings)
    _make_folders(paths, registry)
    with exclusive_lock(paths.state / ".init.lock"):
        _write_settings(paths, site, request, defaults)
        for source in sources:
            stage1.install(source, paths)
        from provisioner.pki import ensure_ca
        from provisioner.registry.registry import Registry
        from provisioner.sitekey import ensure_site_key

        ensure_ca(paths)
        ensure_site_key(paths)  # boot media made from now on know it
        # Last: with it the site counts as initialised.
        Registry(registry).close()
    return InitResult(site, old is None, changed, warnings)


def refuse_foreign_dhcp(site: SiteConfig) -> tuple[str, ...]:
    """Raise CapsulekitError when another DHCP server answers on the site's interface; warnings where nobody could look.

    Two servers on one network give the same machine two addresses, and take down whoever is on it. An interface that
    is not there yet, or is down, has no servers.
    """
    from provisioner.netboot import cards, dhcpwire, interfaces

    card = next((card for card in cards.cards() if card.name == site.interface), None)
    if site.dhcp != "own" or site.six or card is None or not card.up:
        return ()
    if not dhcpwire.may_listen():
        return (f"nobody looked whether another DHCP server answers on {site.interface}: that needs root",)
    own = frozenset(address for _, address in interfaces.ipv4_addresses()) | {site.ip}
    servers = dhcpwire.foreign_servers(site.interface, own)
    if not servers:
        return ()
    raise CapsulekitError(
        f"another DHCP server answers on {site.interface}: {', '.join(servers)}",
        hint="choose another interface; leave the addresses to it: --dhcp proxy; or serve all the same:"
        " --allow-foreign-dhcp",
    )


def _default_vnfs(registry: Path | str, request: InitRequest) -> tuple[InitRequest, tuple[str, ...]]:
    """The request with the capsule's installed name in it; a warning when a site that is there has none like it."""
    if request.default_vnfs and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,254}", request.default_vnfs):
        raise CapsulekitError(
            f"{request.default_vnfs!r} is not the name of a capsule", hint="see: capsulekit vnfs list"
        )
    if not request.default_vnfs or (isinstance(registry, Path) and not registry.exists()):
        return request, ()
    from provisioner.registry.registry import Registry

    known = Registry(registry)
    try:
        name = request.default_vnfs
        if not any(name in (c.name, c.name.removesuffix(f"-{c.version}.{c.arch}")) for c in known.capsules()):
            return request, (f"no capsule {name!r} is installed yet",)
        return replace(request, default_vnfs=known.find_capsule(name).name), ()
    finally:
        known.close()


def _changed(old: SiteConfig, site: SiteConfig, defaults: Defaults, request: InitRequest) -> tuple[str, ...]:
    """The settings that this run changes, as their files spell them."""
    names = [key for key in request.changes() if getattr(old, key) != getattr(site, key)]
    if request.default_vnfs not in (None, defaults.vnfs):
        names.append("default vnfs")
    return tuple(names)


def _make_folders(paths: SitePaths, registry: Path | str) -> None:
    config = (paths.config, paths.trust, paths.config / "modules")
    own = (registry.parent,) if isinstance(registry, Path) else ()
    for folder in (*config, paths.state, paths.state / "stage1", *own):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _write_settings(paths: SitePaths, site: SiteConfig, request: InitRequest, defaults: Defaults) -> None:
    target = site_file(paths)
    if target.exists():
        update_flat(target, request.changes())
    else:
        heading = "This site's settings, read when a command or the server starts."
        atomic_write(target, render_flat(heading, vars(site), COMMENTS).encode(), 0o600)
    target = paths.config / "defaults.toml"
    wanted = {} if request.default_vnfs is None else {"vnfs": request.default_vnfs}
    if target.exists():
        update_flat(target, wanted)
    else:
        heading = "What new nodes get; changing it leaves the nodes that exist as they are."
        atomic_write(target, render_flat(heading, vars(defaults) | wanted, DEFAULTS_COMMENTS).encode(), 0o600)
