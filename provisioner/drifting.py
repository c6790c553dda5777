"""The drift of a site's nodes: asks the desk for each node's plan of now and compares it with the last one given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import site_catalog
from provisioner.drift import Difference, differences, outline
from provisioner.registry.model import Node
from provisioner.registry.registry import Registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore


@dataclass(frozen=True)
class Drift:
    """One node: when it was told what to boot (epoch seconds, None: never), and what a reboot would change.

    ``problem`` says why there is no telling: it never booted, or a reboot would make it wait.
    """

    hostname: str
    booted: float | None
    differences: tuple[Difference, ...] = ()
    problem: str = ""

    @property
    def lines(self) -> list[str]:
        """For people; none when a reboot changes nothing."""
        told = [self.problem] if self.problem else [str(one) for one in self.differences]
        return [f"{self.hostname}: {text}" for text in told]

    def record(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"drift": bool(self.problem or self.differences)}


def drift_of(paths: SitePaths, registry: Registry, nodes: Sequence[Node]) -> Iterator[Drift]:
    """Each node's drift, in order. Raises CapsulekitError when the site's settings cannot be read."""
    desk = Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))
    booted = registry.booted()
    for node in nodes:
        last = booted.get(node.nodeid)
        if last is None:
            yield Drift(node.hostname, None, problem="no boot is known of")
            continue
        try:
            reason = desk.must_wait(node.nodeid)
            if reason:
                yield Drift(node.hostname, last.time, problem=f"would wait after a reboot: {reason}")
                continue
            now = outline(desk.plan(node.nodeid))
        except CapsulekitError as error:
            yield Drift(node.hostname, last.time, problem=f"could not boot again: {error.message}")
            continue
        yield Drift(node.hostname, last.time, differences(last.plan, now))
