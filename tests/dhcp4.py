"""A PXE client's first question by DHCP, and every answer to it: run in a namespace, prints one JSON list.

    python dhcp4.py INTERFACE MAC KIND COUNT [--ipxe]

KIND is the client's architecture, like 0 or 7 (RFC 4578, 2.1); COUNT is how many answers are enough, 0: all that come
within two seconds; --ipxe adds what an iPXE that has HTTP says.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import sys
import time
from typing import Any

COOKIE = b"\x63\x82\x53\x63"


def question(mac: str, kind: int, ipxe: bool) -> bytes:
    """A DHCPDISCOVER as PXE's section 2.2.1 has it."""
    head = struct.pack(">BBBBIHH", 1, 1, 6, 0, secrets.randbits(32), 0, 0x8000) + bytes(16)
    head += bytes.fromhex(mac.replace(":", "")) + bytes(202)
    said = f"PXEClient:Arch:{kind:05}:UNDI:002001".encode()
    options = [(53, b"\1"), (55, bytes([1, 3, 6, 43, 60, 66, 67])), (60, said), (93, struct.pack(">H", kind))]
    options += [(94, b"\1\2\1"), (97, bytes(17))]
    if ipxe:
        options += [(77, b"iPXE"), (175, b"\x13\1\1")]
    return head + COOKIE + b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"


def read(packet: bytes) -> dict[str, Any]:
    """What an answer says."""
    found: dict[str, Any] = {
        "address": socket.inet_ntoa(packet[16:20]),
        "next": socket.inet_ntoa(packet[20:24]),
        "file": packet[108:236].split(b"\0")[0].decode(),
        "class": "",
    }
    at = 240
    while at < len(packet) and packet[at] != 255:
        if packet[at] == 0:
            at += 1
            continue
        code, value = packet[at], packet[at + 2 : at + 2 + packet[at + 1]]
        at += 2 + len(value)
        if code == 54:
            found["server"] = socket.inet_ntoa(value)
        elif code == 60:
            found["class"] = value.decode()
        elif code == 67:
            found["file"] = value.rstrip(b"\0").decode()
    return found


def main(interface: str, mac: str, kind: int, count: int, ipxe: bool) -> None:
    """Ask, wait for the answers, two seconds at most, print them."""
    packet, answers = question(mac, kind, ipxe), []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        s.bind(("0.0.0.0", 68))
        s.sendto(packet, ("255.255.255.255", 67))
        end = time.monotonic() + 2
        while (left := end - time.monotonic()) > 0:
            s.settimeout(left)
            try:
                answer = s.recv(2048)
            except TimeoutError:
                break
            if answer[4:8] == packet[4:8]:
                answers.append(read(answer))
            if len(answers) == count:
                break
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "--ipxe" in sys.argv[5:])
