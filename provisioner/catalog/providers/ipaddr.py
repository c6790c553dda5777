"""Addresses of a node's interfaces, in Perceus's grammar, as the files of four network systems.

A line is ``PATTERN DEV[(OPT=VALUE&…)]:IP/NETMASK/GATEWAY [DEV:…]``; docs/reference/modules.md has it in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from capsulekit.errors import CapsulekitError
from provisioner.catalog.model import Given
from provisioner.catalog.providers import Asked, netfiles
from provisioner.catalog.providers.hosts import address_in
from provisioner.registry.model import Node

_WORD = re.compile(r"(?P<dev>[A-Za-z0-9][A-Za-z0-9_.-]{0,14})(\((?P<options>[^)]*)\))?:(?P<rest>\S*)")
_ADDRESS = r"\[[^\]]*\]|[^/\[\]]"
_PARTS = re.compile(rf"(?P<ip>({_ADDRESS})*)(/(?P<mask>({_ADDRESS})*))?(/(?P<gateway>({_ADDRESS})*))?")
_LOOKUP = re.compile(r"\[(?:default|hostfile)(?::(?P<name>[^\]]*))?\]")
_OPTIONS = {"MTU": r"[0-9]{2,5}", "DNS": r"[0-9a-fA-F.:,]+", "DOMAIN": r"[A-Za-z0-9.,-]+", "METRIC": r"[0-9]{1,9}"}
BOOT = "boot"  # the interface whose MAC is the NodeID


@dataclass(frozen=True)
class Device:
    """One interface. ``mac`` is set for the one that is named by its MAC; ``addresses`` hold their prefix length.

    ``gateways`` holds at most one of IPv4 and one of IPv6.
    """

    name: str
    mac: str = ""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    gateways: tuple[str, ...] = ()
    dhcp: bool = False
    options: dict[str, str] = field(default_factory=dict)


def files_for(asked: Asked) -> Iterator[Given]:
    """The node's interfaces in every form; nothing when no line is about this node."""
    devices = devices_of(asked)
    if not devices:
        return
    for device in devices:
        yield Given(
            f"networkd-{device.name}", netfiles.networkd(device),
            f"/etc/systemd/network/10-capsulekit-{device.name}.network", "if the capsule uses systemd-networkd",
        )  # fmt: skip
        yield Given(
            f"nm-{device.name}", netfiles.networkmanager(device),
            f"/etc/NetworkManager/system-connections/capsulekit-{device.name}.nmconnection",
            "if the capsule uses NetworkManager",
        )  # fmt: skip
    yield Given(
        "ifupdown", netfiles.ifupdown(devices), "/etc/network/interfaces.d/capsulekit", "if the capsule uses ifupdown"
    )
    if links := netfiles.links(devices):
        yield Given("link", links, "/etc/systemd/network/10-capsulekit-boot.link", "if the capsule uses ifupdown")
    yield Given("netplan", netfiles.netplan(devices), "/etc/netplan/90-capsulekit.yaml", "if the capsule uses netplan")


def devices_of(asked: Asked) -> list[Device]:
    """The interfaces of a node, in the order they are first named. Raises CapsulekitError naming the line."""
    found: dict[str, Device] = {}
    for raw in asked.text.split(b"\n"):
        line = raw.decode("utf-8", "replace")
        pattern, *words = line.split()[:1] + line.split()[1:] or [""]
        if not pattern:
            continue
        if not matches(pattern, asked.node):
            continue
        for word in words:
            _add(found, word, asked)
        if pattern in (asked.node.hostname, asked.node.name):
            break  # the node's own line is the last word
    return list(found.values())


def matches(pattern: str, node: Node) -> bool:
    """Whether a line is about a node: ``@GROUP``, a name, or one with ``*``, ``?`` and ranges: ``[05-20,30]``."""
    if pattern.startswith("@"):
        return pattern[1:] == node.groupname
    ranges: list[str] = []

    def group(found: re.Match[str]) -> str:
        if found[0] in "*?":
            return ".*" if found[0] == "*" else "."
        if not found[0].startswith("["):
            return re.escape(found[0])
        ranges.append(found[0][1:-1])
        return "([0-9]+)"

    regex = re.sub(r"\[[0-9,-]+\]|[*?]|[^*?\[]+|\[", group, pattern)
    for name in (node.hostname, node.name):
        found = re.fullmatch(regex, name)
        if found and all(_in_range(digits, told) for digits, told in zip(found.groups(), ranges, strict=True)):
            return True
    return False


def _in_range(digits: str, told: str) -> bool:
    for one in told.split(","):
        low, dash, high = one.partition("-")
        if not dash and digits == low:
            return True
        if dash and low and high and len(digits) == len(low) and int(low) <= int(digits) <= int(high):
            return True
    return False


def _add(found: dict[str, Device], word: str, asked: Asked) -> None:
    read = _WORD.fullmatch(word)
    parts = _PARTS.fullmatch(read["rest"]) if read else None
    if read is None or parts is None:
        raise CapsulekitError(f"{word!r} is not understood", hint="DEVICE:IP/NETMASK/GATEWAY, or DEVICE:dhcp")
    name, alias, _ = read["dev"].partition("_")
    options = _options(word, read["options"] or "")
    device = replace(found.get(name, Device(name)) if alias else Device(name), options=options)
    if alias and name in found:
        device = replace(device, options={**found[name].options, **options})
    if name == BOOT:
        device = replace(device, mac=asked.node.nodeid)
    ip = parts["ip"] or ""
    address = _address(ip, read["dev"], asked) if ip and ip != "dhcp" else ""
    if ip == "dhcp" or (ip and not address):
        # A name that nobody knows (yet): DHCP, as in Perceus.
        device = replace(device, dhcp=True)
    elif address:
        interface = _interface(word, address, parts["mask"] or "[default]", asked)
        device = replace(device, addresses=(*device.addresses, interface))
        if gateway := _gateway(word, parts["gateway"] or "", asked):
            others = (other for other in device.gateways if (":" in other) != (":" in gateway))
            device = replace(device, gateways=(*others, gateway))
    found[name] = device


def _options(word: str, text: str) -> dict[str, str]:
    options = {}
    for one in filter(None, text.split("&")):
        key, _, value = one.partition("=")
        key = key.upper()
        if key not in _OPTIONS:
            raise CapsulekitError(f"{word!r}: unknown option {key!r}", hint="known: " + ", ".join(_OPTIONS))
        if not re.fullmatch(_OPTIONS[key], value):
            raise CapsulekitError(f"{word!r}: {key} can't be {value!r}")
        options[key] = value
    return options


def _address(text: str, device: str, asked: Asked) -> str:
    """An address, or "" when it is to be looked up and nobody knows it."""
    node = asked.node
    if lookup := _LOOKUP.fullmatch(text):
        told = lookup["name"]
        if told is None:
            names = [node.name, node.hostname, f"{node.hostname}.{asked.config.domain}"]
            return str(getattr(node, "address", "")) or address_in(asked.root / "etc/hosts", names)
        return address_in(asked.root / "etc/hosts", [told.replace("NAME", node.hostname).replace("NIC", device)])
    digits = re.sub(r"\D", "", node.hostname)
    return text.replace("[nodenum]", str(int(digits)) if digits else "0")


def _interface(word: str, address: str, mask: str, asked: Asked) -> IPv4Interface | IPv6Interface:
    if mask == "[default]" or re.fullmatch(r"\[(default:)?[A-Za-z0-9_.-]+\]", mask):
        # The master's own network; with an interface's name, that interface is one of the same network.
        network = asked.config.network
        if (":" in address) != (network.version == 6):
            raise CapsulekitError(f"{word!r}: the site's netmask is of IPv{network.version}", hint="write the netmask")
        mask = str(network.prefixlen)
    try:
        return ip_interface(f"{address}/{mask}")
    except ValueError as wrong:
        raise CapsulekitError(f"{word!r}: {wrong}") from wrong


def _gateway(word: str, text: str, asked: Asked) -> str:
    if not text:
        return ""
    if re.fullmatch(r"\[(default:)?[A-Za-z0-9_.-]+\]", text):
        return asked.config.ip
    try:
        return str(ip_address(text))
    except ValueError as wrong:
        raise CapsulekitError(f"{word!r}: {wrong}") from wrong
