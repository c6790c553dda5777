"""Two network namespaces joined by a veth pair, made by a test and gone after it: a master's and a node's."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

UDHCPC_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address flush dev "$interface"
ip address add "$ip/$mask" dev "$interface"
echo "ip=$ip hostname=$hostname domain=$domain boot_file=$boot_file siaddr=$siaddr router=$router dns=$dns"
"""


@dataclass(frozen=True)
class Wire:
    """``master`` and ``node`` are namespace names; in each the interface is called eth0."""

    master: str
    node: str
    mac: str

    def on(
        self, where: str, *argv: str | Path, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside one of the two."""
        command = ["ip", "netns", "exec", where, *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)

    def pids(self, where: str) -> list[int]:
        """Every process in a namespace."""
        done = subprocess.run(["ip", "netns", "pids", where], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]

    def udhcpc(self, folder: Path, *options: str) -> dict[str, str]:
        """One real DHCP exchange of the node with busybox; {} when nobody answered."""
        script = folder / "udhcpc.script"
        script.write_text(UDHCPC_SCRIPT)
        script.chmod(0o755)
        words = ["busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "5", "-T", "1", "-s", script, *options]
        done = self.on(self.node, *words, check=False)
        lease = [line for line in done.stdout.splitlines() if line.startswith("ip=")]
        return dict(word.split("=", 1) for word in lease[-1].split()) if lease else {}


@contextmanager
def wire(address: str = "10.77.0.1/24", mac: str = "52:54:00:12:34:56") -> Iterator[Wire]:
    """The two namespaces, the master's eth0 up with ``address``, the node's up with ``mac`` and no address."""
    tag = f"{os.getpid()}-{secrets.token_hex(3)}"
    made = Wire(f"ckm-{tag}", f"ckn-{tag}", mac)
    names = (made.master, made.node)
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", made.master, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", made.node)
        _ip("-n", made.node, "link", "set", "eth0", "address", mac)
        # An IPv6 address is usable only after a while spent looking for doubles, unless that is left out.
        _ip("-n", made.master, "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        for name in names:
            _ip("-n", name, "link", "set", "eth0", "up")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@contextmanager
def namespace() -> Iterator[str]:
    """One more namespace, with its loopback up."""
    name = f"ckx-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def join(one: str, device: str, other: str, other_device: str, *, address: str = "", mac: str = "") -> None:
    """A wire between two namespaces; ``address`` is the first end's, ``mac`` the second's."""
    _ip("-n", one, "link", "add", device, "type", "veth", "peer", "name", other_device, "netns", other)
    if mac:
        _ip("-n", other, "link", "set", other_device, "address", mac)
    if address:
        _ip("-n", one, "address", "add", address, "dev", device)
    _ip("-n", one, "link", "set", device, "up")
    _ip("-n", other, "link", "set", other_device, "up")


def bridge(where: str, name: str, *ports: str, address: str = "") -> None:
    """A switch in a namespace, with the namespace's own ``address`` on it."""
    _ip("-n", where, "link", "add", name, "type", "bridge", "forward_delay", "0")
    for port in ports:
        _ip("-n", where, "link", "set", port, "master", name)
    if address:
        _ip("-n", where, "address", "add", address, "dev", name)
    _ip("-n", where, "link", "set", name, "up")


@contextmanager
def program(where: str, *argv: str, log: Path) -> Iterator[None]:
    """A program that runs in a namespace until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(["ip", "netns", "exec", where, *argv], stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait()
