"""The drift of a site's nodes: what was changed on each since it booted, and what a reboot would change.

The desk is asked for each node's plan of now, which is compared with the last one given; its files are compared with
its generation's, as far as its agent told of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import site_catalog
from provisioner.drift import Difference, differences, outline
from provisioner.filedrift import FileDrift, FileDrifts
from provisioner.folding import fold
from provisioner.registry.booted import Booted
from provisioner.registry.model import Node
from provisioner.registry.registry import Registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

KERNEL = ("boot/vmlinuz", "layers/modules.squashfs")


@dataclass(frozen=True)
class Drift:
    """One node: when it was told what to boot (epoch seconds, None: never), and what a reboot would change.

    ``problem`` says why there is no telling: it never booted, or a reboot would make it wait. ``files`` are those that
    are not as its generation and its modules have them.
    """

    hostname: str
    booted: float | None
    differences: tuple[Difference, ...] = ()
    problem: str = ""
    files: FileDrift = field(default_factory=FileDrift)

    def lines(self, verbose: bool = False) -> list[str]:
        """For people, without the node's name; none when it is as booted and a reboot changes nothing."""
        told = [self.problem] if self.problem else [str(one) for one in self.differences]
        return told + self.files.lines(verbose)

    def record(self) -> dict[str, Any]:
        """For --json."""
        own = {"hostname": self.hostname, "booted": self.booted, "problem": self.problem,
               "differences": [asdict(one) for one in self.differences], "files": self.files.record()}  # fmt: skip
        return own | {"drift": bool(self.problem or self.differences or self.files.differs)}


def folded(drifts: Iterable[Drift], verbose: bool = False) -> Iterator[str]:
    """The lines of many nodes, "NAMES: WHAT": nodes of which the same is said are one, in the order of the first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in drifts:
        lines = one.lines(verbose) or (["as booted"] if verbose else [])
        if lines:
            groups.setdefault(tuple(lines), []).append(one.hostname)
    for said, names in groups.items():
        yield from (f"{fold(names)}: {line}" for line in said)


def drift_of(paths: SitePaths, registry: Registry, nodes: Sequence[Node]) -> Iterator[Drift]:
    """Each node's drift, in order. Raises CapsulekitError when the site's settings cannot be read."""
    store = VnfsStore(paths, registry)
    desk = Desk(paths, load_site(paths), registry, site_catalog(paths), store)
    booted = registry.booted()
    with FileDrifts(store, registry) as files:
        for node in nodes:
            last = booted.get(node.nodeid)
            found = files.of(node, last)
            if last is None:
                yield Drift(node.hostname, None, problem="no boot is known of")
                continue
            changed, problem = _after_reboot(desk, store, node, last)
            yield Drift(node.hostname, last.time, changed, problem, found)


def _after_reboot(desk: Desk, store: VnfsStore, node: Node, last: Booted) -> tuple[tuple[Difference, ...], str]:
    """(what a reboot would change, or why there is no telling)"""
    try:
        reason = desk.must_wait(node.nodeid)
        if reason:
            return (), f"would wait after a reboot: {reason}"
        now = outline(desk.plan(node.nodeid))
    except CapsulekitError as error:
        return (), f"could not boot again: {error.message}"
    return (*differences(last.plan, now), *_kernel(store, json.loads(last.plan), json.loads(now))), ""


def _kernel(store: VnfsStore, last: dict[str, str], now: dict[str, str]) -> tuple[Difference, ...]:
    """The kernel that runs against the one of now, also where a livesync has brought the rest."""
    runs = last.get("under") or last.get("identity", "")
    if (last.get("vnfs"), runs) == (now.get("vnfs"), now.get("identity")):
        return ()
    try:
        old, new = store.digests(last["vnfs"], runs), store.digests(now["vnfs"], now["identity"])
        if all(old.get(name) == new.get(name) for name in KERNEL):
            return ()
        release = store.manifest(last["vnfs"], runs).kernel_release
        coming = store.manifest(now["vnfs"], now["identity"]).kernel_release
    except (CapsulekitError, KeyError):  # its generation is gone: that it is another one is said
        return ()
    return (Difference("kernel", release, coming if coming != release else f"{coming} built anew"),)
