"""Pretend nodes in the registry: put there with a mark, taken away by it.

The mark is written in the transaction that adds the node and so is there exactly as long as the node, however a run
ends. It counts only under a MAC of our range: a machine that took a pretend node's place (``node replace``) stays.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.hostkeys import node_dir
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import Node
from provisioner.registry.registry import Registry

# Locally administered (bit 2 of the first byte), so nobody's card has one; the other three are "SIM".
PREFIX = "06:53:49:4D:"
MOST_NODES = 1 << 16
MARK = "pretend node of capsulekit simulate"
A_LOT = 2000  # nodes in one transaction: others write in between


def mac_of(number: int) -> str:
    """The MAC of a pretend node, counted from 0 to MOST_NODES - 1."""
    return f"{PREFIX}{number >> 8:02X}:{number & 255:02X}"


@contextmanager
def alone(paths: SitePaths) -> Iterator[None]:
    """Nobody else simulates at this site inside the block. Raises CapsulekitError when somebody does."""
    with (paths.state / "simulate.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapsulekitError("another simulate is running at this site", hint="wait for its end") from None
        yield


def capsule_for(paths: SitePaths, registry: Registry, wanted: str) -> str:
    """The installed name of the capsule that pretend nodes boot. Raises CapsulekitError when there is none."""
    name = wanted or load_defaults(paths).vnfs
    if not name:
        raise CapsulekitError(
            "new nodes have no capsule: pretend nodes would wait for one", hint="--vnfs NAME, or: capsulekit vnfs list"
        )
    return registry.find_capsule(name).name


def add(paths: SitePaths, registry: Registry, number: int, vnfs: str, group: str) -> None:
    """Add so many pretend nodes. Raises CapsulekitError; what was added until then is there, with its mark."""
    defaults = load_defaults(paths)
    defaults = replace(defaults, vnfs=vnfs, group=group or defaults.group, enabled=True)
    for start in range(0, number, A_LOT):
        machines = [(mac_of(n), f"pretend-{n:05d}") for n in range(start, min(start + A_LOT, number))]
        with registry.db.write():
            registry.add_nodes(machines, defaults=defaults)
            registry.set_nodes("desc", MARK, [mac for mac, _ in machines])


def found(registry: Registry) -> Iterator[Node]:
    """The pretend nodes that are registered."""
    return (node for node in registry.each_node() if node.desc == MARK and node.nodeid.startswith(PREFIX))


def remove(paths: SitePaths, registry: Registry, number: int = 0) -> int:
    """Take away every pretend node, also those of a run that was killed; returns how many.

    ``number`` are those that were added now: what an admin deleted of them meanwhile has host keys to remove too.
    """
    gone = 0
    while some := list(islice(found(registry), A_LOT)):
        macs = [node.nodeid for node in some]
        _remove_keys(paths, macs)  # first what the registry's rows lead to
        gone += registry.delete_nodes(macs)
    for start in range(0, number, A_LOT):
        macs = [mac_of(n) for n in range(start, min(start + A_LOT, number))]
        _remove_keys(paths, set(macs) - registry.nodes_of(macs).keys())
    return gone


def _remove_keys(paths: SitePaths, macs: Iterable[str]) -> None:
    for mac in macs:
        shutil.rmtree(node_dir(paths, mac).parent, ignore_errors=True)
