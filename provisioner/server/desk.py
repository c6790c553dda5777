"""What the master does for a node, step by step, without HTTP. Everything here blocks: the app calls it in threads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import Catalog, Script
from provisioner.catalog.chosen import OWN, Brought, Context, brought, in_order
from provisioner.devices import Device
from provisioner.drift import outline
from provisioner.registry.capsules import find_capsule
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.registry.registry import DuplicateNode, Registry
from provisioner.server.plan import (
    CapsuleView,
    is_private,
    make_plan,
    make_state_plan,
    own_scripts,
    view_capsule,
    wait_reason,
)
from provisioner.siteconf import SiteConfig
from provisioner.vnfs.store import VnfsStore

MOST_VIEWS = 32
NODES_SECONDS = 2.0  # how old the list of nodes may be that modules write about


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
    _all: tuple[float, Sequence[Node]] = (float("-inf"), ())

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
        return wait_reason(node, self.capsule_of(node))

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
        capsule = self.capsule_of(node)
        if capsule is None:
            raise CapsulekitError(f"capsule {node.vnfs!r} is not installed")
        found = self._brought(node, "init", capsule)
        kargs = (self.config.kargs, self.registry.group_kargs(node.groupname))
        return make_plan(
            node, self._view(capsule), found.scripts, found.data,
            site_kargs=" ".join(text for text in kargs if text), now=time.time(), mirrors=self.config.mirror_urls,
        )  # fmt: skip

    def hand_out(self, mac: str) -> str:
        """The plan of a node that boots by it now: what `node drift` compares later ones with. Raises as plan does."""
        plan = self.plan(mac)
        self.registry.record_booted(mac, outline(plan))
        return plan

    def state_plan(self, mac: str, state: str) -> str:
        """What a running node does in a state: ``ok`` when that is nothing. Raises UnknownNode, or CapsulekitError."""
        answer = self.state_plans([(mac, state)])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def state_plans(self, asked: Sequence[tuple[str, str]]) -> list[str | Exception]:
        """For each (NodeID, state) what state_plan says, or what it raises; the registry is asked once for all."""
        nodes = self.registry.nodes_of([mac for mac, _ in asked])
        installed, active = self.registry.capsules(), self.registry.roles()
        answers: list[str | Exception] = []
        for mac, state in asked:
            try:
                if mac not in nodes:
                    raise UnknownNode(mac)
                node = nodes[mac]
                answers.append(self._state_plan(node, state, _capsule_of(node, installed), active))
            except Exception as wrong:  # this node's alone
                answers.append(wrong)
        return answers

    def _state_plan(
        self, node: Node, state: str, capsule: InstalledCapsule | None, active: Mapping[str, Sequence[str]]
    ) -> str:
        found = self._brought(node, state, capsule, active)
        scripts = in_order([*found.scripts, *self._own_scripts(node, state, capsule)])
        runs = {one.module.name: (one.module.every, one.module.limit) for one in found.chosen}
        return make_state_plan(node, state, scripts, found.data, runs)

    def script(self, mac: str, sha256: str) -> bytes | None:
        """A script or data file, if a plan of this node names it, for whichever state. Raises UnknownNode."""
        node = self._node(mac)
        capsule = self.capsule_of(node)
        wrong = None
        for state in self.config.all_states:
            try:
                found = self._brought(node, state, capsule)
            except CapsulekitError as error:  # one state's trouble is not another's
                wrong = error
                continue
            files = {s.sha256: s.text for s in (*found.scripts, *self._own_scripts(node, state, capsule))}
            files |= {d.sha256: d.content for d in found.data}
            if sha256 in files:
                return files[sha256]
        if wrong:
            raise wrong
        return None

    def private_blob(self, mac: str, sha256: str) -> Path | None:
        """A member of the node's own capsule, private or not, or None. Raises UnknownNode."""
        node = self._node(mac)
        capsule = self.capsule_of(node)
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

    def capsule_of(self, node: Node) -> InstalledCapsule | None:
        """The capsule that a node would boot, or None."""
        return _capsule_of(node, self.registry.capsules()) if node.vnfs else None

    def _brought(
        self,
        node: Node,
        state: str,
        capsule: InstalledCapsule | None,
        active: Mapping[str, Sequence[str]] | None = None,
    ) -> Brought:
        """What the modules active for this node bring to a state; nothing before the node may boot.

        ``active`` are the registry's roles, where they are known already.
        """
        if wait_reason(node, capsule):
            return Brought()
        context = Context(self.paths, self.config, self.catalog, self._nodes)
        return brought(context, self.registry.roles() if active is None else active, node, state, capsule)

    def _own_scripts(self, node: Node, state: str, capsule: InstalledCapsule | None) -> list[Script]:
        """The capsule's own scripts for a state after init: they count as the module ``vnfs``."""
        if state == "init" or capsule is None or wait_reason(node, capsule):
            return []
        return [
            Script(OWN, state, order, name, self.store.blob(member.sha256).read_bytes(), member.sha256)
            for order, name, member in own_scripts(self._view(capsule), state)
        ]

    def _nodes(self) -> Sequence[Node]:
        """Every node, as of a moment ago: a file about all of them is asked for by all of them at once."""
        when, nodes = self._all
        if time.monotonic() - when > NODES_SECONDS:
            nodes = self.registry.nodes()
            self._all = (time.monotonic(), nodes)
        return nodes

    def view_of(self, node: Node) -> CapsuleView:
        """The capsule that a node would boot. Raises CapsulekitError when it has none."""
        capsule = self.capsule_of(node)
        if capsule is None:
            raise CapsulekitError(f"capsule {node.vnfs!r} is not installed")
        return self._view(capsule)

    def _view(self, capsule: InstalledCapsule) -> CapsuleView:
        view = self._views.get(capsule.identity)
        if view is None or view.installed != capsule:
            view = view_capsule(self.store, capsule)
            while len(self._views) >= MOST_VIEWS:
                self._views.pop(next(iter(self._views)), None)
            self._views[capsule.identity] = view
        return view


def _capsule_of(node: Node, installed: Sequence[InstalledCapsule]) -> InstalledCapsule | None:
    try:
        return find_capsule(installed, node.vnfs) if node.vnfs else None
    except CapsulekitError:  # not installed (yet), or ambiguous: the node waits for the admin
        return None
