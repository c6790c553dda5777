"""dnsmasq, which gives nodes addresses, names and their first file: its configuration, and a process of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.run import CommandFailed, run, tied, tool
from provisioner.netboot.supervised import Supervised

PURPOSE = "give the nodes addresses and boot files"


def check_config(conf: Path) -> None:
    """Have dnsmasq read a configuration without acting on it. Raises CapsulekitError naming the line it refuses."""
    try:
        run(["dnsmasq", "--test", f"--conf-file={conf}"], purpose=PURPOSE, timeout=60)
    except CommandFailed as refused:
        said = refused.output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise CapsulekitError(
            f"dnsmasq refuses its configuration: {said[0].removeprefix('dnsmasq:').strip()}",
            hint="check address, range and domain in site.toml, networks.toml, and the files in dnsmasq.d beside them",
        ) from refused


class Dnsmasq(Supervised):
    """dnsmasq as a supervised process. ``address`` is where it answers for names, "" when it does not."""

    def __init__(self, conf: Path, address: str, log: Callable[..., None], does: str = "addresses") -> None:
        super().__init__(log, "dnsmasq", does)
        self.conf, self.address = conf, address
        # A name that only this process knows: another name server on the address must not pass for it.
        self._mark = f"{secrets.token_hex(8)}.capsulekit.invalid"
        self._up = False

    def argv(self) -> Sequence[str | Path]:
        self._up = False
        words = [*tied("TERM", PURPOSE), tool("dnsmasq", PURPOSE), f"--conf-file={self.conf}"]
        return [*words, f"--host-record={self._mark},{self.address}"] if self.address else words

    async def serves(self) -> bool:
        if self.address:
            return await asyncio.to_thread(answers, self.address, self._mark)
        # Its first words, said once its sockets are there.
        return self.pid is not None and self._up

    def hear(self, text: str) -> None:
        super().hear(text)
        self._up = self._up or " started, version " in text
        self.log("dnsmasq", says=text)

    def hint(self, why: str) -> str | None:
        busy = "another DHCP, DNS or TFTP server runs on this machine? Stop it, or keep it off this interface"
        return busy if "in use" in why else None


def answers(address: str, name: str, port: int = 53, timeout: float = 0.5) -> bool:
    """True when a name server there knows an address of its own family for ``name`` (RFC 1035 4.1, RFC 3596 2.1)."""
    number = os.urandom(2)
    family, kind = (socket.AF_INET6, 28) if ":" in address else (socket.AF_INET, 1)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = number + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(timeout)
        try:
            s.connect((address, port))
            s.send(query)
            reply = s.recv(512)
        except OSError:
            return False
    return reply[:2] == number and reply[6:8] != b"\0\0"  # bytes 6 and 7 count the answers


def release(server: str, mac: str, address: str) -> None:
    """Give a lease back in the name of the machine that has it (RFC 2131, 4.4.6); IPv4 only.

    ``server`` is our own address on the wire, whose dnsmasq takes this as the machine's own word.
    """
    options = b"\x63\x82\x53\x63" + bytes([53, 1, 7, 54, 4]) + socket.inet_aton(server) + b"\xff"
    head = struct.pack(">BBBBIHH", 1, 1, 6, 0, secrets.randbits(32), 0, 0)
    packet = head + socket.inet_aton(address) + bytes(12) + bytes.fromhex(mac.replace(":", "")) + bytes(202) + options
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(packet, (server, 67))
