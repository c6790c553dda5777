"""One DHCPv6 Solicit from an interface, and what the Advertise says (RFC 8415; bootfile URL and kind: RFC 5970).

Run inside a network namespace: python dhcp6.py INTERFACE MAC [CODE=HEX…], CODE being an option to send.
Prints ADDRESS and BOOTFILE-URL, each "-" when it is not there.
"""

from __future__ import annotations

import socket
import struct
import sys

CLIENT_ID, IA_NA, IA_ADDRESS, REQUEST_LIST, BOOTFILE_URL = 1, 3, 5, 6, 59


def option(code: int, data: bytes) -> bytes:
    """One option as it travels."""
    return struct.pack(">HH", code, len(data)) + data


def options(data: bytes) -> dict[int, bytes]:
    """The options in a message or in an option, the last of each code."""
    found = {}
    while len(data) >= 4:
        code, size = struct.unpack_from(">HH", data)
        found[code], data = data[4 : 4 + size], data[4 + size :]
    return found


def main(interface: str, mac: str, *more: str) -> None:
    """Ask, and print the answer."""
    duid = struct.pack(">HH", 3, 1) + bytes.fromhex(mac.replace(":", ""))
    asked = option(CLIENT_ID, duid) + option(IA_NA, bytes(12)) + option(REQUEST_LIST, struct.pack(">H", BOOTFILE_URL))
    for word in more:
        code, _, text = word.partition("=")
        asked += option(int(code), bytes.fromhex(text))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        s.bind(("::", 546))
        number = socket.if_nametoindex(interface)
        for _ in range(5):
            s.sendto(b"\x01abc" + asked, ("ff02::1:2", 547, 0, number))
            try:
                answer = options(s.recv(2048)[4:])
            except TimeoutError:
                continue
            inner = options(answer.get(IA_NA, b"")[12:]).get(IA_ADDRESS, b"")
            address = socket.inet_ntop(socket.AF_INET6, inner[:16]) if inner else "-"
            print(address, answer.get(BOOTFILE_URL, b"-").decode())
            return
    raise SystemExit("no DHCPv6 server answered")


if __name__ == "__main__":
    main(*sys.argv[1:])
