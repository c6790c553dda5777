"""Which addresses this machine has, asked of the kernel."""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array
from pathlib import Path

from capsulekit.errors import CapsulekitError

SIOCGIFCONF = 0x8912  # netdevice(7)
# struct ifreq on 64-bit Linux: 16 bytes of name, sockaddr_in (family, port, address), padding.
IFREQ = struct.Struct("16sHH4s16x")
ROOM = 4096  # addresses
IF_INET6 = Path("/proc/net/if_inet6")


def ipv4_addresses() -> list[tuple[str, str]]:
    """Every (interface, address) of this network namespace."""
    room = array("B", bytes(ROOM * IFREQ.size))
    request = bytearray(struct.pack("iP", len(room), room.buffer_info()[0]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s.fileno(), SIOCGIFCONF, request)
    used = struct.unpack("iP", request)[0]
    found = (IFREQ.unpack_from(room, at) for at in range(0, used, IFREQ.size))
    # A label such as eth0:1 is a second address of eth0.
    return [(name.split(b"\0")[0].decode().partition(":")[0], socket.inet_ntoa(ip)) for name, _, _, ip in found]


def ipv6_addresses() -> list[tuple[str, str]]:
    """The same for IPv6; none where the kernel has no IPv6."""
    try:
        lines = IF_INET6.read_text().splitlines()
    except FileNotFoundError:
        return []
    # Address, interface's number, prefix length, scope and flags, all in hex; the interface's name.
    words = (line.split() for line in lines)
    return [(word[-1], socket.inet_ntop(socket.AF_INET6, bytes.fromhex(word[0]))) for word in words]


def require_address(interface: str, address: str) -> None:
    """Raises CapsulekitError unless the interface is there and has the address (no prefix)."""
    names = {name for _, name in socket.if_nameindex()}
    if interface not in names:
        real = ", ".join(sorted(names - {"lo"})) or "none"
        raise CapsulekitError(
            f"there is no network interface {interface}",
            hint=f"this machine has: {real}; change it with: capsulekit init --interface NAME",
        )
    if (interface, _plain(address)) not in ipv4_addresses() + ipv6_addresses():
        raise CapsulekitError(
            f"interface {interface} does not have the address {address}",
            hint=f"add it: ip address add {address}/PREFIX dev {interface}; or change it: capsulekit init --address",
        )


def _plain(address: str) -> str:
    """An address in the one spelling that the kernel's answers have here."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))
