"""Which IPv4 addresses this machine has, asked of the kernel."""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array

from capsulekit.errors import CapsulekitError

SIOCGIFCONF = 0x8912  # netdevice(7)
# struct ifreq on 64-bit Linux: 16 bytes of name, sockaddr_in (family, port, address), padding.
IFREQ = struct.Struct("16sHH4s16x")
ROOM = 4096  # addresses


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


def require_address(interface: str, address: str) -> None:
    """Raises CapsulekitError unless the interface is there and has the address (no prefix)."""
    names = {name for _, name in socket.if_nameindex()}
    if interface not in names:
        real = ", ".join(sorted(names - {"lo"})) or "none"
        raise CapsulekitError(
            f"there is no network interface {interface}",
            hint=f"this machine has: {real}; change it with: capsulekit init --interface NAME",
        )
    if (interface, address) not in ipv4_addresses():
        raise CapsulekitError(
            f"interface {interface} does not have the address {address}",
            hint=f"add it: ip address add {address}/PREFIX dev {interface}; or change it: capsulekit init --address",
        )
