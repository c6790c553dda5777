"""What ``configure dhcp``, ``dns`` and ``hosts`` would write, checked the way the server checks it; writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.sitepaths import SitePaths
from provisioner.flattoml import updated
from provisioner.netboot import files
from provisioner.netboot.config import config_text, names_text
from provisioner.netboot.hosts import parse_hosts, read_hosts
from provisioner.netboot.interfaces import require_address
from provisioner.netboot.networks import Network, load_networks, require_network
from provisioner.netboot.upstream import upstream_servers
from provisioner.registry.model import Node
from provisioner.siteconf import SiteConfig, check_site, read_site, site_file
from provisioner.sitefiles import Change, block, outside_block, whole

LOCAL = "nameserver 127.0.0.1"


def site_change(paths: SitePaths, settings: dict[str, Any]) -> Change | None:
    """site.toml with these settings in it, or None when it has them.

    Raises CapsulekitError for settings that can't work: wrong values, an interface this machine has not, an address
    the interface has not, a line that dnsmasq refuses.
    """
    path = site_file(paths)
    site = replace(read_site(paths), **settings)
    check_site(site, str(path))
    networks = load_networks(paths, site)
    for net in networks:
        if net.interface:
            require_address(net.interface, net.address)
    servers = upstream_servers(site.dns_upstream, {net.address for net in networks})
    of_both = (site, networks, paths.state / "netboot", paths.config / "dnsmasq.d")
    texts = {files.MAIN: config_text(*of_both), files.NAMES_MAIN: names_text(*of_both)}
    files.try_files({**texts, files.UPSTREAM: "".join(f"server={server}\n" for server in servers)})
    return whole(path, updated(path.read_text(encoding="utf-8"), settings), 0o600)


def range_settings(text: str) -> dict[str, str]:
    """START-END as settings. Raises UsageError."""
    start, dash, end = text.partition("-")
    if not dash or not start.strip() or not end.strip():
        raise UsageError(f"--range {text!r} is not START-END", hint="like 10.0.1.1-10.0.1.250")
    return {"range_start": start.strip(), "range_end": end.strip()}


def resolver_change(path: Path, local: bool) -> Change | None:
    """resolv.conf asking our own name server first, or not any more; None when it is so.

    Raises CapsulekitError where another program writes the file.
    """
    if path.is_symlink():
        raise CapsulekitError(
            f"{path} is a link to {path.readlink()}: another program writes that file",
            hint="tell that program that 127.0.0.1 is the first name server",
        )
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    servers = [number for number, line in enumerate(lines) if line.split()[:1] == ["nameserver"]]
    ours = [number for number in servers if lines[number].split()[1:2] == ["127.0.0.1"]]
    if local == bool(ours and ours[0] == servers[0]) and (local or not ours):
        return None
    kept = [line for number, line in enumerate(lines) if number not in ours]
    if local:
        first = next((n for n, line in enumerate(kept) if line.split()[:1] == ["nameserver"]), len(kept))
        kept.insert(first, LOCAL)
    return whole(path, "".join(f"{line}\n" for line in kept))


def hosts_change(
    site: SiteConfig, networks: Sequence[Network], nodes: Sequence[Node], path: Path, first: str = ""
) -> Change | None:
    """A hosts file with a line for every node that has a fixed address, in our block; None when it is so.

    With ``first`` each node that has none gets one there, counting up from it: in the order of the names, past the
    pools and past all that is taken. Nodes keep what the block gave them before; nodes named outside of it are left to
    those lines. Raises CapsulekitError when ``first`` is in no network, or its network is full.
    """
    outside = parse_hosts("\n".join(text for _, text in outside_block(path)))
    named = {name.lower() for line in outside for name in line.names}
    before = {line.names[0].lower(): line.address for line in read_hosts(path) if line.names[0].lower() not in named}
    nodes = sorted(nodes, key=lambda node: node.hostname)
    given = {node.hostname: node.address for node in nodes if node.address}
    mine = [node for node in nodes if not node.address and not {node.hostname.lower(), node.name.lower()} & named]
    given |= {n.hostname: before[n.hostname.lower()] for n in mine if n.hostname.lower() in before}
    if first:
        taken = {line.address for line in outside} | set(given.values()) | {node.ipaddr for node in nodes}
        free = _free(networks, first, taken)
        for node in mine:
            if node.hostname not in given:
                given[node.hostname] = next(free)
    lines = [_line(given[node.hostname], node, site.domain) for node in nodes if node.hostname in given]
    return block(path, lines)


def _line(address: str, node: Node, domain: str) -> str:
    names = dict.fromkeys([node.hostname, node.name, f"{node.hostname}.{domain}"])
    return f"{address} {' '.join(names)}"


def _free(networks: Sequence[Network], first: str, taken: Iterable[str]) -> Iterator[str]:
    """Free addresses of the network that holds ``first``, from there on."""
    net = require_network(networks, first, "--first")
    used, address = set(taken), ip_address(first)

    while address in net.network and net.has_host(str(address)):
        if str(address) not in used and str(address) != net.gateway and not net.in_pool(str(address)):
            yield str(address)
        address += 1
    raise CapsulekitError(f"{net.network} has no more addresses free after {first}", hint="take a lower --first")
