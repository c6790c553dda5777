"""What the kernel knows of the machine at the other end of a connection: how it is reached, and its MAC.

A connection that stands says that the kernel had the right MAC: its answers went there. One question each by netlink
(rtnetlink(7)), whatever the number of neighbours; no program is run.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

# <linux/rtnetlink.h> and <linux/neighbour.h>
RTM_GETROUTE, RTM_GETNEIGH, NLMSG_ERROR, NLM_F_REQUEST = 26, 30, 2, 1
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA = 1, 4, 5, 18
RTN_LOCAL = 2
NDA_DST, NDA_LLADDR = 1, 2
# reachable, stale, delay, probe, permanent: the address is known, and answers are sent there
NUD_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
HEADER, ROUTE, NEIGHBOUR, ATTRIBUTE = "=IHHII", "=BBBBBBBBI", "=BBHiHBB", "=HH"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


@dataclass(frozen=True)
class Way:
    """How an address is reached: it is this machine's own, or through an interface, or (0) through a router."""

    local: bool
    interface: int


def way_to(address: str) -> Way:
    """The way that answers take. An address that nothing leads to counts as one behind a router."""
    plain, _, zone = address.partition("%")
    if zone:
        return Way(False, socket.if_nametoindex(zone))
    family, packed = _packed(plain)
    kind = struct.pack(ROUTE, family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    answer = _ask(RTM_GETROUTE, kind, RTA_DST, packed)
    if answer is None:
        return Way(False, 0)
    attributes = _attributes(answer, struct.calcsize(ROUTE))
    routed = RTA_GATEWAY in attributes or RTA_VIA in attributes
    interface = 0 if routed else struct.unpack("=I", attributes.get(RTA_OIF, bytes(4)))[0]
    return Way(struct.unpack_from(ROUTE, answer)[7] == RTN_LOCAL, interface)


def neighbour(address: str, interface: int) -> str:
    """The MAC that an address has on the wire of an interface (its number), as registries spell it.

    "" when the kernel knows none, or one that is no Ethernet address.
    """
    family, packed = _packed(address.partition("%")[0])
    answer = _ask(RTM_GETNEIGH, struct.pack(NEIGHBOUR, family, 0, 0, interface, 0, 0, 0), NDA_DST, packed)
    if answer is None or not struct.unpack_from(NEIGHBOUR, answer)[4] & NUD_KNOWN:
        return ""
    mac = _attributes(answer, struct.calcsize(NEIGHBOUR)).get(NDA_LLADDR, b"")
    return mac.hex(":").upper() if len(mac) == 6 else ""


def local_user(address: str, port: int) -> int | None:
    """The user whose socket of this machine has that end of a TCP connection; None when it has no owner (any more)."""
    packed = ip_address(address.partition("%")[0]).packed
    mapped = bytes(10) + b"\xff\xff" + packed if len(packed) == 4 else b""
    ends = {f"{_hex(one)}:{port:04X}" for one in (packed, mapped) if one}
    for table in TABLES:
        if not table.exists():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            # proc(5): sl local_address rem_address st queues tr:when retrnsmt uid timeout inode; a socket that nobody
            # holds has the inode 0, and then says that it is root's.
            if not any(end in line for end in ends):
                continue  # the table has a line for each connection of the machine: most are not taken apart
            words = line.split()
            if words[1] in ends and words[9] != "0":
                return int(words[7])
    return None


def _packed(address: str) -> tuple[int, bytes]:
    found = ip_address(address)
    return (socket.AF_INET6 if found.version == 6 else socket.AF_INET), found.packed


def _hex(packed: bytes) -> str:
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)


def _ask(kind: int, head: bytes, attribute: int, value: bytes) -> bytes | None:
    """One question about one address; the answer without its header, or None when the kernel has none."""
    body = head + struct.pack(ATTRIBUTE, 4 + len(value), attribute) + value
    size = struct.calcsize(HEADER)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as s:
        s.settimeout(5)
        s.send(struct.pack(HEADER, size + len(body), kind, NLM_F_REQUEST, 1, 0) + body)
        answer = s.recv(16384)
    length, found = struct.unpack_from(HEADER, answer)[:2]
    return None if found == NLMSG_ERROR else answer[size:length]


def _attributes(answer: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from(ATTRIBUTE, answer, at)
        if length < 4:
            break
        found[kind] = answer[at + 4 : at + length]
        at += (length + 3) & ~3
    return found
