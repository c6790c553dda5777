"""This machine's network interfaces with their addresses, and a range of addresses to propose for nodes."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path

from provisioner.netboot.interfaces import IF_INET6, ipv4_addresses

SIOCGIFNETMASK, SIOCGIFFLAGS = 0x891B, 0x8913  # netdevice(7)
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
MOST = 1022  # addresses proposed: a dynamic range is for machines that are new


@dataclass(frozen=True)
class Card:
    """An interface that nodes might be on. ``addresses`` have their prefix length: "10.0.0.1/16"."""

    name: str
    mac: str
    addresses: tuple[str, ...]
    up: bool
    linked: bool  # a cable is in it, and something at its other end

    @property
    def line(self) -> str:
        """The card as one line of a list."""
        state = "" if self.linked else "  (no link)" if self.up else "  (down)"
        return f"{self.name:<15} {self.mac:<17}  {', '.join(self.addresses) or 'no address'}{state}"


def cards() -> list[Card]:
    """Every interface but loopback, in the kernel's order. Link-local addresses are left out."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            flags = struct.unpack_from("H", _ask(s, SIOCGIFFLAGS, name), 16)[0]
            if flags & IFF_LOOPBACK:
                continue
            four = [f"{ip}/{_prefix(s, name, ip)}" for card, ip in ipv4_addresses() if card == name]
            found.append(Card(name, _mac(name), (*four, *_six(name)), bool(flags & IFF_UP), bool(flags & IFF_RUNNING)))
    return found


def propose_range(address: str) -> tuple[str, str] | None:
    """(first, last) of a range for new nodes beside a master at ``address``, "10.0.0.1/16"; None when there is no room.

    The upper half of the network, at most MOST addresses of it, so that fixed addresses have the lower; the lower half
    where the master is in the upper. It never holds the master, the network's own address or the broadcast address.
    """
    master = ip_interface(address)
    if isinstance(master, IPv6Interface):
        first = int(master.network.network_address) + 0x1000
        if first <= int(master.ip) <= first + 0xFFF:
            first += 0x1000
        return str(type(master.ip)(first)), str(type(master.ip)(first + 0xFFF))
    assert isinstance(master, IPv4Interface)
    low, high = int(master.network.network_address) + 1, int(master.network.broadcast_address) - 1
    if high <= low:
        return None
    middle = (low + high + 1) // 2
    first, last = (middle, high) if int(master.ip) < middle else (low, middle - 1)
    # Of a large network whole blocks of 256, without the .0 that some devices take for a broadcast.
    if last - first >= MOST:
        first = (last - MOST + 1) // 256 * 256 + 1
    return str(type(master.ip)(first)), str(type(master.ip)(last))


def _ask(s: socket.socket, request: int, name: str) -> bytes:
    return fcntl.ioctl(s.fileno(), request, struct.pack("40s", name.encode()))


def _prefix(s: socket.socket, name: str, address: str) -> int:
    """The prefix length of one of an interface's IPv4 addresses: the kernel finds it by the address it is handed."""
    request = struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))
    mask = fcntl.ioctl(s.fileno(), SIOCGIFNETMASK, request)[20:24]
    return int.from_bytes(mask).bit_count()


def _mac(name: str) -> str:
    try:
        return Path(f"/sys/class/net/{name}/address").read_text().strip()
    except OSError:
        return ""


def _six(name: str) -> list[str]:
    """IPv6 addresses of global or unique local scope (proc: address, number, prefix, scope, flags, name; hex)."""
    try:
        lines = IF_INET6.read_text().splitlines()
    except FileNotFoundError:
        return []
    words = [line.split() for line in lines]
    return [
        f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(word[0]))}/{int(word[2], 16)}"
        for word in words
        if word[-1] == name and word[3] == "00"
    ]
