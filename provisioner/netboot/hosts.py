"""Who is called what and has which address: dnsmasq's two lists, made of the registry, the hosts file and the leases.

Nothing in the lists comes from a node: every word is a MAC, an address or a name that was checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from capsulekit.errors import CapsulekitError
from provisioner.netboot.leases import FoundLease
from provisioner.netboot.networks import Network, require_network
from provisioner.registry.model import Node

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*")


@dataclass(frozen=True)
class HostsLine:
    """One line of a hosts file (hosts(5))."""

    address: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class NamesSource:
    """What the lists are made of. ``gives`` is False where another server gives the addresses (dhcp = proxy or off)."""

    nodes: Sequence[Node]
    networks: Sequence[Network]
    hosts: Sequence[HostsLine] = ()
    hosts_file: str = ""
    leases: Sequence[FoundLease] = ()
    master: str = ""  # this machine's own host name
    gives: bool = True


@dataclass
class Names:
    """dnsmasq's lists. ``release`` are leases of machines that are no nodes, on addresses that now are a node's."""

    dhcp: str = ""  # dhcp-hostsfile: MAC[,ADDRESS],HOST
    dns: str = ""  # addn-hosts: ADDRESS NAME…
    problems: tuple[str, ...] = ()
    release: tuple[FoundLease, ...] = ()
    fixed: dict[str, str] = field(default_factory=dict)  # address → MAC


def read_hosts(path: Path) -> list[HostsLine]:
    """The lines of a hosts file, as parse_hosts reads them; a file that is not there is an empty one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CapsulekitError(f"{path}: {error.strerror}", hint="it is hosts_file in site.toml") from error
    return parse_hosts(text)


def parse_hosts(text: str) -> list[HostsLine]:
    """The lines that mean something to other machines: no loopback, no link-local addresses.

    What is no address or no name is left out.
    """
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2 or not _is_for_others(words[0]):
            continue
        names = tuple(word for word in words[1:] if len(word) <= 253 and _NAME.fullmatch(word))
        if names:
            found.append(HostsLine(str(ip_address(words[0])), names))
    return found


def plan_names(source: NamesSource) -> Names:
    """The two lists. What can't be given is left out and named in ``problems``; the order of nodes does not matter."""
    names, problems = Names(), []
    dhcp: list[str] = []
    dns: list[tuple[str, str]] = [(line.address, " ".join(line.names)) for line in _for_all(source)]
    by_name = _addresses_by_name(source.hosts)
    leased = {lease.mac: lease for lease in source.leases}
    # What the registry says comes before what the hosts file says, whoever is first.
    for node in sorted(source.nodes, key=lambda node: (not node.address, node.nodeid)):
        told = [] if node.address else _told_by_file(by_name, node)
        address, wrong = _fixed(source, node, told, names.fixed)
        problems += wrong
        if address:
            names.fixed[address] = node.nodeid
        if source.gives:
            dhcp.append(_dhcp_line(node.nodeid, address, node.hostname))
        both = node.hostname if node.name == node.hostname else f"{node.hostname} {node.name}"
        shown = dict.fromkeys([*([address] if address else []), *told])
        if not shown and not source.gives and node.ipaddr:
            shown = dict.fromkeys([node.ipaddr])  # what the other server gave it, as it last told us
        dns += [(one, both) for one in shown]
        if not shown and node.nodeid in leased:
            dns.append((leased[node.nodeid].address, both))
    known = {node.nodeid for node in source.nodes}
    for lease in source.leases:
        if lease.mac in known:
            problems += _in_the_way(lease, names.fixed, source.nodes)
        elif lease.address in names.fixed:
            names.release += (lease,)
        elif lease.hostname:
            # A lease keeps its name until dnsmasq is told another one, and this machine's node was deleted or replaced.
            dhcp.append(_dhcp_line(lease.mac, "", f"host-{lease.mac.replace(':', '').lower()}"))
    names.dhcp = "".join(f"{line}\n" for line in sorted(set(dhcp)))
    names.dns = "".join(f"{address} {words}\n" for address, words in sorted(set(dns)))
    names.problems = tuple(problems)
    return names


def _for_all(source: NamesSource) -> list[HostsLine]:
    """The lines of the hosts file that name no node, and this master's own."""
    nodes = {name.lower() for node in source.nodes for name in (node.hostname, node.name)}
    lines = []
    for line in source.hosts:
        others = tuple(name for name in line.names if name.lower() not in nodes)
        if others:
            lines.append(HostsLine(line.address, others))
    own = source.master.partition(".")[0]
    taken = nodes | {name.lower() for line in lines for name in line.names}
    if own and _NAME.fullmatch(own) and own.lower() not in taken:
        lines += [HostsLine(net.address, (own,)) for net in source.networks[:1] if net.address]
    return lines


def _addresses_by_name(hosts: Sequence[HostsLine]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in hosts:
        for name in line.names:
            found.setdefault(name.lower(), []).append(line.address)
    return found


def _told_by_file(by_name: dict[str, list[str]], node: Node) -> list[str]:
    """The addresses that the hosts file gives to exactly this name."""
    return [
        address
        for name in dict.fromkeys((node.hostname.lower(), node.name.lower()))
        for address in by_name.get(name, [])
    ]


def _fixed(source: NamesSource, node: Node, told: Iterable[str], taken: dict[str, str]) -> tuple[str, list[str]]:
    """A node's fixed address, "" without one, and what is wrong with those it can't have."""
    problems = []
    for address in [node.address] if node.address else told:
        by = "" if node.address else f" by {source.hosts_file}"
        who = f"node {node.hostname} ({node.nodeid}){by}"
        try:
            if source.gives:
                require_network(source.networks, address, who)
            plain = str(ip_address(address))
            if plain in taken:
                raise CapsulekitError(f"{who}: {plain} is the address of {taken[plain]} already")
        except (CapsulekitError, ValueError) as error:
            problems.append(str(error))
            continue
        return plain, []  # of several lines in the file, the first that can be
    return "", problems


def _dhcp_line(mac: str, address: str, host: str) -> str:
    # Stock dnsmasq strips the domain of a dotted name, so only the first part is ever written.
    where = f"[{address}]" if ":" in address else address
    return ",".join(word for word in (mac.lower(), where, host) if word)


def _in_the_way(lease: FoundLease, fixed: dict[str, str], nodes: Sequence[Node]) -> list[str]:
    owner = fixed.get(lease.address, lease.mac)
    if owner == lease.mac:
        return []
    name = next(node.hostname for node in nodes if node.nodeid == owner)
    return [f"node {name} ({owner}) can't have {lease.address} yet: {lease.mac} has it until its lease ends"]


def _is_for_others(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
