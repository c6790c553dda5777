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
from provisioner.nfs import places
from provisioner.registry.capsules import find_capsule
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.registry.registry import DuplicateNode, Registry
from provisioner.registry.trees import PackedTree
from provisioner.server.plan import (
    CapsuleView,
    fetched,
    is_private,
    make_plan,
    make_state_plan,
    own_scripts,
    view_capsule,
    wait_reason,
)
from provisioner.siteconf import SiteConfig
from provisioner.vnfs.edits import Edits
from provisioner.vnfs.store import VnfsStore

MOST_VIEWS = 32
HAND_OUTS = 3  # tries for a plan whose capsule changes meanwhile
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
    edits: Edits = field(init=False)
    _views: dict[str, CapsuleView] = field(default_factory=dict)
    _members: dict[str, frozenset[str]] = field(default_factory=dict)
    _all: tuple[float, Sequence[Node]] = (float("-inf"), ())

    def __post_init__(self) -> None:
        self.edits = Edits(self.paths)

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
        """Why a node must wait to boot (see waits), or "". Raises UnknownNode."""
        return self.waits(self._node(mac))

    def waits(self, node: Node) -> str:
        """Why a node may not boot now: see wait_reason, or ``capsule-mounted`` and a sentence about who edits it."""
        capsule = self.capsule_of(node)
        reason = wait_reason(node, capsule)
        # One that is under way already, or up, goes on with the generation that it has.
        return reason if reason or capsule is None else self.edits.wait_reason(capsule.name)

    def report(
        self, mac: str, state: str, addr: str, detail: str = "", seconds: float | None = None,
        mem_kb: int | None = None, tree: str = "",
    ) -> bool:  # fmt: skip
        """Record that a node entered a state. ``seconds`` is its uptime, ``tree`` the digest of its list of files.

        True: the list itself is wanted. Raises UnknownNode.
        """
        if not self.registry.record_state(mac, state, addr, detail, seconds=seconds, mem_used_kb=mem_kb):
            raise UnknownNode(mac)
        return bool(tree) and not self.registry.tree_seen(mac, tree)

    def tree(self, mac: str, data: PackedTree) -> None:
        """Keep what a node says of its files, which was checked. Raises UnknownNode."""
        if not self.registry.record_tree(mac, data):
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
        return self._plan(node, self._installed(node))

    def hand_out(self, mac: str) -> str:
        """The plan of a node that boots by it now: what `node drift` compares later ones with. Raises as plan does.

        What it names stays in the store until the node gets another one. A generation that somebody deletes just now
        has either left the registry here, or its deletion sees what was recorded (provisioner/vnfs/remove.py).
        """
        for _ in range(HAND_OUTS):
            node = self._node(mac)
            capsule = self._installed(node)
            plan = self._plan(node, capsule)
            self.registry.record_booted(mac, outline(plan))
            now = self.registry.capsule(capsule.name)
            if now is not None and now.identity == capsule.identity:
                return plan
        raise CapsulekitError(f"capsule {node.vnfs!r} is being changed", hint="ask again in a moment")

    def _plan(self, node: Node, capsule: InstalledCapsule) -> str:
        found = self._brought(node, "init", capsule)
        kargs = (self.config.kargs, self.registry.group_kargs(node.groupname))
        view = self._view(capsule)
        return make_plan(
            node, view, found.scripts, found.data,
            site_kargs=" ".join(text for text in kargs if text), now=time.time(), mirrors=self.config.mirror_urls,
            hybrid=places.layer_export(self.paths, self.config, view.hybrid) if view.hybrid else "",
            nfs=places.blobs_export(self.paths, self.config),
        )  # fmt: skip

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
        """A member of the capsule that the node was told to boot last, or would boot now, private or not; or None.

        So what a node has begun to fetch it can fetch to the end, whatever became of the capsule. Raises UnknownNode.
        """
        node = self._node(mac)
        if not node.accepted or not node.enabled:
            return None
        handed = self.registry.handed_to(mac)
        if handed is not None and sha256 in self._fetched(*handed):
            return self.store.blob(sha256)
        capsule = self.capsule_of(node)
        members = {f.sha256 for f in self._view(capsule).files} if capsule else ()
        return self.store.blob(sha256) if sha256 in members else None

    def _fetched(self, name: str, identity: str) -> frozenset[str]:
        """The digests that a plan of this generation names; none when it is gone."""
        known = self._members.get(identity)
        if known is None:
            try:
                told, digests = self.store.manifest(name, identity), self.store.digests(name, identity)
            except CapsulekitError:
                return frozenset()
            known = frozenset(digests[member] for member in fetched(told))
            while len(self._members) >= MOST_VIEWS:
                self._members.pop(next(iter(self._members)), None)
            self._members[identity] = known
        return known

    def public_blob(self, sha256: str) -> Path | None:
        """A member that anybody may have, or None: there is none, or it is private. The two are not told apart."""
        blob = self.store.blob(sha256)
        try:
            return None if is_private(blob) else blob
        except FileNotFoundError:
            return None

    def sums(self, identity: str, name: str) -> Path | None:
        """SHA256SUMS or its signature, of what an installed capsule is, or some node was told to boot last."""
        for capsule in self.registry.capsules():
            if capsule.identity == identity:
                return self.store.generation(capsule.name, identity) / name
        handed = self.registry.handed_name(identity)
        return self.store.generation(handed, identity) / name if handed else None

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
        return self._view(self._installed(node))

    def _installed(self, node: Node) -> InstalledCapsule:
        capsule = self.capsule_of(node)
        if capsule is None:
            raise CapsulekitError(f"capsule {node.vnfs!r} is not installed")
        return capsule

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
