"""Names and addresses of the cluster, for the modules that need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from provisioner.registry.model import Node

LOOPBACK = ("localhost", "ip6-localhost", "ip6-loopback", "ip6-allnodes", "ip6-allrouters")


def host_lines(path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(address, names) of a hosts file's lines, loopback ones left out; () when there is no such file."""
    try:
        info = path.stat()
    except OSError:
        return ()
    return _host_lines(path, info.st_mtime_ns, info.st_size)


@lru_cache(maxsize=4)
def _host_lines(path: Path, _mtime: int, _size: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            real = ip_address(address)
        except ValueError:
            continue
        if names and not (real.is_loopback or real.is_multicast or set(names) & set(LOOPBACK)):
            found.append((address, tuple(names)))
    return tuple(found)


def address_in(path: Path, names: Sequence[str]) -> str:
    """The address of the first of ``names`` in a hosts file, or ""."""
    for wanted in names:
        for address, there in host_lines(path):
            if wanted in there:
                return address
    return ""


def fixed_addresses(nodes: Sequence[Node], domain: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(address, names) of the registered nodes that have a fixed address."""
    for node in nodes:
        address = getattr(node, "address", "")
        if address:
            yield address, tuple(dict.fromkeys((f"{node.hostname}.{domain}", node.hostname, node.name)))
