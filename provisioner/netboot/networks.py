"""The networks whose machines this master answers: the site's own, and those of config/networks.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.siteconf import SiteConfig

SITE = "site"  # the name of the network that site.toml describes
KEYS: dict[str, type[Any]] = {
    "name": str, "address": str, "interface": str, "range": str, "gateway": str, "dns": list, "relayed": bool,
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network. Addresses are text; ``first`` and ``last`` are "" where there is no pool for unknown machines."""

    name: str
    network: IPv4Network | IPv6Network
    interface: str = ""  # "" when its requests come through a relay
    address: str = ""  # the master's own address in it, "" when it has none
    first: str = ""
    last: str = ""
    gateway: str = ""  # "" is the master, or the relay
    dns: tuple[str, ...] = ()  # () is the master

    def has_host(self, address: str) -> bool:
        """Whether a machine may have this address here: inside, neither the first nor the last, not the master's."""
        found = ip_address(address)
        ends = () if self.network.prefixlen >= 31 else (self.network[0], self.network[-1])
        return found in self.network and found not in ends and str(found) != self.address

    def in_pool(self, address: str) -> bool:
        """Whether this address may be given to any machine that has none of its own; it must be one of this network."""
        if not self.first:
            return False
        return int(ip_address(self.first)) <= int(ip_address(address)) <= int(ip_address(self.last))


def networks_file(paths: SitePaths) -> Path:
    """Where further networks are described; it need not be there."""
    return paths.config / "networks.toml"


def load_networks(paths: SitePaths, config: SiteConfig) -> tuple[Network, ...]:
    """The site's own network first, then the others in the file's order. Raises CapsulekitError naming the entry."""
    own = Network(SITE, config.network, config.interface, config.ip, config.range_start, config.range_end)
    path = networks_file(paths)
    if not path.exists():
        return (own,)
    found = [own]
    for number, entry in enumerate(_entries(path), 1):
        where = f"{path}: network {number}"
        if config.six:
            raise CapsulekitError(f"{where}: this site has IPv6 addresses, further networks are IPv4's only")
        made = _network(entry, f"net{number}", where)
        if made.network == own.network:
            found[0] = _described(own, made, where)
            continue
        _check_beside(made, found, where)
        found.append(made)
    return tuple(found)


def require_network(networks: Sequence[Network], address: str, who: str) -> Network:
    """The network that holds a fixed address. Raises CapsulekitError naming ``who`` would have it, and the networks."""
    try:
        found = next((net for net in networks if net.has_host(address)), None)
    except ValueError as error:
        raise CapsulekitError(f"{who}: {address!r} is not an IP address") from error
    if found is None:
        served = ", ".join(str(net.network) for net in networks)
        raise CapsulekitError(
            f"{who}: {address} is no machine's address in any network of this site ({served})",
            hint="take one of these, or describe the network in networks.toml",
        )
    return found


def require_fixed(networks: Sequence[Network], address: str, who: str) -> Network:
    """The network in which a node can be given this address for good. Raises CapsulekitError saying why it can't."""
    net = require_network(networks, address, who)
    if address == net.gateway:
        raise CapsulekitError(f"{who}: {address} is the gateway of {net.network}", hint="take another address")
    if net.in_pool(address):
        raise CapsulekitError(
            f"{who}: {address} is in the pool {net.first}-{net.last}, where any machine may have it already",
            hint="take one outside of it, or make the pool smaller: capsulekit configure dhcp --range START-END",
        )
    return net


def _entries(path: Path) -> list[dict[str, Any]]:
    """The [[network]] tables, their keys and types checked."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CapsulekitError(f"{path}: {error}") from error
    entries = document.pop("network", [])
    if document or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CapsulekitError(f"{path} holds [[network]] tables and nothing else")
    for number, entry in enumerate(entries, 1):
        for key, value in entry.items():
            if key not in KEYS:
                known = ", ".join(KEYS)
                raise CapsulekitError(f"{path}: network {number}: unknown key {key!r}", hint=f"known: {known}")
            fits = type(value) is KEYS[key] and all(isinstance(one, str) for one in (value if key == "dns" else ()))
            if not fits:
                kind = "a list of addresses" if key == "dns" else "true or false" if key == "relayed" else "text"
                raise CapsulekitError(f"{path}: network {number}: {key} must be {kind}, not {value!r}")
    return entries


def _network(entry: dict[str, Any], name: str, where: str) -> Network:
    """One entry, checked for itself."""
    name, text = entry.get("name", name), entry.get("address", "")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or name == SITE:
        raise CapsulekitError(f"{where}: name {name!r} is not a small letter with letters, digits and hyphens")
    try:
        if "/" not in text:
            raise ValueError("no prefix length")
        address = IPv4Interface(text)
    except ValueError as error:
        raise CapsulekitError(
            f"{where}: address {text!r} is not an IPv4 address with a prefix length", hint="like 10.1.0.1/24"
        ) from error
    if address.network.prefixlen > 30:
        raise CapsulekitError(f"{where}: address {text} leaves no room for nodes")
    made = Network(name, address.network, entry.get("interface", ""), dns=tuple(entry.get("dns", ())))
    if not entry.get("relayed", False):
        made = replace(made, address=str(address.ip))
    elif made.interface:
        raise CapsulekitError(f"{where}: it is relayed, so it has no interface here")
    if made.interface and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,14}", made.interface):
        raise CapsulekitError(f"{where}: interface {made.interface!r} is not the name of a network interface")
    made = replace(made, gateway=_gateway(made, entry.get("gateway", ""), where))
    for server in made.dns:
        _ipv4(server, f"{where}: dns")
    return _with_range(made, entry.get("range", ""), where)


def _gateway(net: Network, text: str, where: str) -> str:
    if text and str(_ipv4(text, f"{where}: gateway")) != net.address and not net.has_host(text):
        raise CapsulekitError(f"{where}: gateway {text} is not a host's address in {net.network}")
    return text


def _with_range(net: Network, text: str, where: str) -> Network:
    """The network with its pool, START-END."""
    if not text:
        return net
    start, dash, end = (word.strip() for word in text.partition("-"))
    if not dash:
        raise CapsulekitError(f"{where}: range {text!r} is not START-END", hint="like 10.1.0.100-10.1.0.200")
    first, last = _ipv4(start, f"{where}: range"), _ipv4(end, f"{where}: range")
    ends = (net.network[0], net.network[-1])
    for address in (first, last):
        if address not in net.network or address in ends:
            raise CapsulekitError(f"{where}: range: {address} is not a host's address in {net.network}")
    if first > last:
        raise CapsulekitError(f"{where}: the range {first}-{last} runs backwards")
    for key in ("address", "gateway"):
        taken = getattr(net, key)
        if taken and first <= IPv4Address(taken) <= last:
            raise CapsulekitError(f"{where}: the range {first}-{last} holds the {key} {taken}")
    return replace(net, first=str(first), last=str(last))


def _described(own: Network, made: Network, where: str) -> Network:
    """The site's own network with what site.toml has no words for: its gateway and its name servers."""
    if made.first or made.interface:
        raise CapsulekitError(
            f"{where}: {own.network} is the site's own: its interface and range are in site.toml",
            hint="only address, gateway and dns are taken from here",
        )
    return replace(own, gateway=made.gateway, dns=made.dns)


def _check_beside(made: Network, others: Sequence[Network], where: str) -> None:
    """Refuse what can't be beside the networks before it."""
    if not made.interface and made.address:
        raise CapsulekitError(f"{where}: it needs an interface, or: relayed = true")
    for other in others:
        if made.network.overlaps(other.network):
            raise CapsulekitError(f"{where}: {made.network} overlaps {other.network} ({other.name})")
        if made.interface and made.interface == other.interface:
            raise CapsulekitError(
                f"{where}: interface {made.interface} has the network {other.network} already",
                hint="machines on one wire can't be told apart: take another interface, or one larger network",
            )
        if made.name == other.name:
            raise CapsulekitError(f"{where}: there are two networks called {made.name}")


def _ipv4(text: str, where: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise CapsulekitError(f"{where}: {text!r} is not an IPv4 address") from error
