"""A network of its own for a lab: one namespace holding a bridge with an address, and a tap for each node."""

from __future__ import annotations

import os
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from capsulekit.run import run

PREFIX = "ck-"
GRACE = 5.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Network:
    """A namespace's name, the bridge inside it and the bridge's address ("10.77.0.1/24" or "fd00:77::1/64")."""

    namespace: str
    bridge: str
    address: str

    def inside(self, argv: list[str]) -> list[str]:
        """The argument list that runs ``argv`` inside the namespace."""
        return ["ip", "netns", "exec", self.namespace, *argv]


def new_name() -> str:
    """A namespace name that no other lab has: ck- and 8 hex digits."""
    return PREFIX + secrets.token_hex(4)


def create(network: Network) -> None:
    """Make the namespace with loopback and bridge up; raises CapsulekitError (root is needed)."""
    _ip("netns", "add", network.namespace)
    # An IPv6 address is usable only after a while spent looking for doubles, unless that is left out.
    how = ("nodad",) if ":" in network.address else ()
    for words in (
        ("link", "set", "lo", "up"),
        ("link", "add", network.bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"),
        ("address", "add", network.address, "dev", network.bridge, *how),
        ("link", "set", network.bridge, "up"),
    ):
        _ip("-n", network.namespace, *words)


def add_tap(network: Network, tap: str) -> None:
    """A tap on the bridge, for one node."""
    _ip("-n", network.namespace, "tuntap", "add", "dev", tap, "mode", "tap")
    _ip("-n", network.namespace, "link", "set", tap, "master", network.bridge, "up")


def set_carrier(network: Network, tap: str, up: bool) -> None:
    """Plug or pull the node's cable, on the bridge's side."""
    _ip("-n", network.namespace, "link", "set", tap, "up" if up else "down")


def exists(namespace: str) -> bool:
    """Whether a namespace of that name is there."""
    return Path("/run/netns", namespace).exists()


def remove(namespace: str) -> None:
    """End every process inside the namespace and delete it, with its bridge and taps. Nothing there is fine."""
    if not exists(namespace):
        return
    _end_processes(namespace)
    _ip("netns", "del", namespace)


def _end_processes(namespace: str) -> None:
    """The namespace is the lab's own, so are its processes: asked first, killed after GRACE seconds."""
    deadline = time.monotonic() + GRACE
    asked = False
    while pids := _pids(namespace):
        late = time.monotonic() > deadline
        if not asked or late:
            for pid in pids:
                _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
            asked = True
        if late and time.monotonic() > deadline + GRACE:
            return
        time.sleep(0.05)


def _pids(namespace: str) -> list[int]:
    """Processes inside the namespace, but dead ones that only wait for their parent."""
    listed = run(["ip", "netns", "pids", namespace], purpose="list a lab's processes").split()
    return [int(p) for p in listed if int(p) != os.getpid() and not _is_zombie(int(p))]


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _ip(*words: str) -> None:
    run(["ip", *words], purpose="set up a lab's network")
