"""What the master does for a node, step by step, without HTTP. Everything here blocks: the app calls it in threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import Catalog, DataFile, Script
from provisioner.devices import Device
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.registry.registry import DuplicateNode, Registry
from provisioner.server.plan import CapsuleView, is_private, make_plan, view_capsule, wait_reason
from provisioner.siteconf import SiteConfig
from provisioner.vnfs.store import VnfsStore

MOST_VIEWS = 32


class UnknownNode(CapsulekitError):
    """The node was deleted while it held a session."""

    def __init__(self, mac: str) -> None:
        super().__init__(f"{mac} is not registered (any more)")


@dataclass
class Desk:
    """One site's answers to its nodes. Holds nothing per node; a few capsules' unchanging parts are kept."""

    paths: SitePaths
    config: SiteConfig
    registry: Registry
    catalog: Catalog
    store: VnfsStore
    _views: dict[str, CapsuleView] = field(default_factory=dict)

    def join(self, mac: str) -> Node | None:
        """Register an unknown MAC as the site's policy says; the new node, or None when it was known.

        Raises CapsulekitError when the template has no free name left.
        """
        if self.registry.node(mac):
            return None
        try:
            return self.registry.add_node(
                mac, defaults=load_defaults(self.paths), accepted=self.config.policy == "auto"
            )
        except DuplicateNode:
            if self.registry.node(mac):
                return None  # it asked twice at once, and the other request was first
            raise

    def must_wait(self, mac: str) -> str:
        """Why a node must wait (see wait_reason), or "". Raises UnknownNode."""
        node = self._node(mac)
        return wait_reason(node, self._capsule(node))

    def report(
        self, mac: str, state: str, addr: str, detail: str = "", seconds: float | None = None, mem_kb: int | None = None
    ) -> None:
        """Record that a node entered a state. ``seconds`` is its uptime. Raises UnknownNode."""
        if not self.registry.record_state(mac, state, addr, detail, seconds=seconds, mem_used_kb=mem_kb):
            raise UnknownNode(mac)

    def progress(
        self, mac: str, step: str, status: str, seconds: float | None, detail: str, mem_kb: int | None
    ) -> None:
        """Record a step of a node's boot. Raises UnknownNode, or CapsulekitError for an unknown status."""
        if not self.registry.record_step(mac, step, status, seconds, detail, mem_kb):
            raise UnknownNode(mac)

    def devices(self, mac: str, devices: Sequence[Device]) -> None:
        """Record what a node is made of. Raises UnknownNode."""
        if not self.registry.record_devices(mac, devices):
            raise UnknownNode(mac)

    def plan(self, mac: str) -> str:
        """The node's plan. Raises UnknownNode, or CapsulekitError when its capsule is not what was imported."""
        node = self._node(mac)
        capsule = self._capsule(node)
        if capsule is None:
            raise CapsulekitError(f"capsule {node.vnfs!r} is not installed")
        scripts, data = self._module_files(node)
        return make_plan(
            node, self._view(capsule), scripts, data,
            site_kargs=self.config.kargs, now=time.time(), mirrors=self.config.mirror_urls,
        )  # fmt: skip

    def script(self, mac: str, sha256: str) -> bytes | None:
        """A module's script or data file, if this node's plan names it. Raises UnknownNode."""
        scripts, data = self._module_files(self._node(mac))
        found = {s.sha256: s.text for s in scripts} | {d.sha256: d.content for d in data}
        return found.get(sha256)

    def private_blob(self, mac: str, sha256: str) -> Path | None:
        """A member of the node's own capsule, private or not, or None. Raises UnknownNode."""
        node = self._node(mac)
        capsule = self._capsule(node)
        if capsule is None or wait_reason(node, capsule):
            return None
        members = {f.sha256 for f in self._view(capsule).files}
        return self.store.blob(sha256) if sha256 in members else None

    def public_blob(self, sha256: str) -> Path | None:
        """A member that anybody may have, or None: there is none, or it is private. The two are not told apart."""
        blob = self.store.blob(sha256)
        try:
            return None if is_private(blob) else blob
        except FileNotFoundError:
            return None

    def sums(self, identity: str, name: str) -> Path | None:
        """SHA256SUMS or its signature, of an installed capsule."""
        for capsule in self.registry.capsules():
            if capsule.identity == identity:
                return self.store.folder(capsule.name) / name
        return None

    def _node(self, mac: str) -> Node:
        node = self.registry.node(mac)
        if node is None:
            raise UnknownNode(mac)
        return node

    def _capsule(self, node: Node) -> InstalledCapsule | None:
        try:
            return self.registry.find_capsule(node.vnfs) if node.vnfs else None
        except CapsulekitError:  # not installed (yet), or ambiguous: the node waits for the admin
            return None

    def _module_files(self, node: Node) -> tuple[list[Script], list[DataFile]]:
        """What the modules active for this node bring to its plan; nothing before the node may boot."""
        if wait_reason(node, self._capsule(node)):
            return [], []
        named = (self.catalog.module(name) for name in self.registry.modules_for(node, "init"))
        modules = [module for module in named if module is not None]
        scripts = [script for module in modules for script in module.scripts_for("init")]
        return scripts, [file for module in modules for file in module.data_for(self.paths, node.nodeid)]

    def _view(self, capsule: InstalledCapsule) -> CapsuleView:
        view = self._views.get(capsule.identity)
        if view is None or view.installed != capsule:
            view = view_capsule(self.store, capsule)
            while len(self._views) >= MOST_VIEWS:
                self._views.pop(next(iter(self._views)), None)
            self._views[capsule.identity] = view
        return view
