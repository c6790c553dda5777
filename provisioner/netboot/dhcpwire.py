"""DHCP as it passes on a wire: who answers there, and who asks (RFC 2131, 951). Frames, so no address is needed.

A packet socket hears what other programs of this machine send and receive too, and takes no port away from dnsmasq.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError
from provisioner.registry.names import parse_mac

SERVER, CLIENT = 67, 68
DISCOVER, OFFER, REQUEST = 1, 2, 3
ETH_P_IP = 0x0800
BROADCAST = b"\xff" * 6
COOKIE = b"\x63\x82\x53\x63"
# Servers ping an address before they offer it: dnsmasq waits 3 s for the answer, ISC dhcpd 1 s.
WAIT_SECONDS = 4.5
AGAIN_SECONDS = 1.5
SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>


@dataclass(frozen=True)
class Message:
    """One DHCP message. ``mac`` is the client's NodeID; ``kind`` of option 53; addresses are IPv4 texts or ""."""

    kind: int
    xid: int
    mac: str
    server: str
    hostname: str


def may_listen() -> bool:
    """Whether this process may open a packet socket (CAP_NET_RAW)."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return False
    return True


def foreign_servers(interface: str, own: frozenset[str], wait: float = WAIT_SECONDS) -> list[str]:
    """Addresses of the DHCP servers that answer on an interface, sorted, without this machine's ``own``.

    Asks several times within ``wait`` seconds, as a client would, and takes no lease. Raises CapsulekitError when the
    interface can't be listened to.
    """
    xid = int.from_bytes(os.urandom(4))
    found: set[str] = set()
    with _listening(interface, CLIENT) as wire:
        mac = wire.getsockname()[4][:6]
        end = time.monotonic() + wait
        ask = 0.0
        while (now := time.monotonic()) < end:
            if now >= ask:
                wire.send(discover_frame(mac, xid))
                ask = now + AGAIN_SECONDS
            wire.settimeout(max(0.01, min(end, ask) - now))
            try:
                message = parse_frame(wire.recv(2048))
            except TimeoutError:
                continue
            if message and message.kind == OFFER and message.xid == xid and message.server not in own:
                found.add(message.server)
                # One is enough to refuse; a moment more names the others.
                end = min(end, time.monotonic() + 0.5)
    return sorted(found)


def asking(interface: str, timeout: float | None) -> Iterator[Message]:
    """Every DISCOVER and REQUEST that passes on an interface, as it comes, for ``timeout`` seconds (None: for ever).

    Raises CapsulekitError when the interface can't be listened to.
    """
    end = None if timeout is None else time.monotonic() + timeout
    with _listening(interface, SERVER) as wire:
        while end is None or time.monotonic() < end:
            wire.settimeout(None if end is None else max(0.01, end - time.monotonic()))
            try:
                message = parse_frame(wire.recv(2048))
            except TimeoutError:
                return
            if message and message.kind in (DISCOVER, REQUEST):
                yield message


def discover_frame(mac: bytes, xid: int) -> bytes:
    """An Ethernet frame with a DHCPDISCOVER of a card; the answer is asked for by broadcast."""
    bootp = struct.pack("!BBBBIHH16s16s192s", 1, 1, 6, 0, xid, 0, 0x8000, b"", mac, b"")
    options = COOKIE + bytes([53, 1, DISCOVER, 55, 4, 1, 3, 51, 54, 255])
    payload = (bootp + options).ljust(300, b"\0")  # some relays drop shorter ones (RFC 1542, 2.1)
    udp = struct.pack("!HHHH", CLIENT, SERVER, 8 + len(payload), 0) + payload  # no checksum, which IPv4 allows
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\0" * 4, b"\xff" * 4)
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    return BROADCAST + mac + struct.pack("!H", ETH_P_IP) + head + udp


def parse_frame(frame: bytes) -> Message | None:
    """The DHCP message in an Ethernet frame; None when there is none, or it is damaged, or not of an Ethernet card."""
    if len(frame) < 14 + 20 or frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    bootp = frame[14 + (frame[14] & 15) * 4 + 8 :]
    if len(bootp) < 240 or bootp[236:240] != COOKIE or bootp[1:3] != b"\x01\x06":
        return None
    options = _options(bootp[240:])
    try:
        mac = parse_mac(bootp[28:34].hex(":"))
    except CapsulekitError:
        return None
    source = socket.inet_ntoa(frame[26:30])
    server = options.get(54, b"")
    name = options.get(12, b"").decode("ascii", "replace").rstrip("\0")
    return Message(
        kind=options.get(53, b"\0")[0] if options.get(53) else 0,
        xid=int.from_bytes(bootp[4:8]),
        mac=mac,
        server=socket.inet_ntoa(server) if len(server) == 4 else source,
        hostname=name,
    )


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            break
        found.setdefault(data[at], data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + data[at + 1]
    return found


@contextmanager
def _listening(interface: str, port: int) -> Iterator[socket.socket]:
    """A packet socket on an interface that is given only UDP to ``port``: NFS's traffic must not drown it."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
            _filter(wire, port)
            wire.bind((interface, ETH_P_IP))
            yield wire
    except PermissionError as error:
        raise CapsulekitError(f"can't listen to DHCP on {interface} without root's rights") from error
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise CapsulekitError(f"can't listen to DHCP on {interface}: {why}") from error


def _filter(wire: socket.socket, port: int) -> None:
    """Classic BPF (linux/filter.h): IPv4, UDP, no later fragment, to ``port``; what tcpdump -d prints for it."""
    program = [
        (0x28, 0, 0, 12), (0x15, 0, 8, ETH_P_IP), (0x30, 0, 0, 23), (0x15, 0, 6, 17), (0x28, 0, 0, 20),
        (0x45, 4, 0, 0x1FFF), (0xB1, 0, 0, 14), (0x48, 0, 0, 16), (0x15, 0, 1, port), (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    wire.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
