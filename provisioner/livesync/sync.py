"""``vnfs livesync``: brings running nodes to their capsule's current generation, several at a time, each on its own.

A node is asked over ssh what it has; what differs by content is sent from a read-only view of the generation. Killed at
any moment it leaves whole files, old or new; done again it goes on where it was.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from capsulekit.edit.stack import Image, merged, need_root
from capsulekit.errors import CapsulekitError
from provisioner.catalog import site_catalog
from provisioner.livesync import rsync, ssh
from provisioner.livesync.choose import LEFT, Rules, Work, work_of
from provisioner.livesync.skip import skip_list
from provisioner.registry.booted import Booted
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.registry.registry import Registry
from provisioner.trees.compare import compare
from provisioner.trees.entry import shown, unescape
from provisioner.trees.generation import Between, Tree, differing, generation_tree, hybrid_tree, views
from provisioner.trees.report import MOST_BYTES, NodeTree, parse_report
from provisioner.trees.written import Written
from provisioner.vnfs.store import VnfsStore

LIMIT, SECONDS = 16, 600.0
MOST_NAMED = 10  # paths in one line
DONE, SAME, FAILED, SKIPPED = "done", "same", "failed", "skipped"


@dataclass(frozen=True)
class Request:
    """How it is done. ``limit``: nodes at a time; ``seconds``: the most that each of a node's steps may take."""

    delete: bool = False
    dry_run: bool = False
    limit: int = LIMIT
    seconds: float = SECONDS


@dataclass(frozen=True)
class Result:
    """What came of one node: ``status`` is done, same (it was as it should be), skipped or failed (``why``).

    ``kernel``: only a reboot brings its new kernel or modules.
    """

    hostname: str
    status: str
    why: str = ""
    work: Work = field(default_factory=Work)
    kernel: bool = False
    seconds: float = 0.0

    def line(self, dry_run: bool = False) -> str:
        """For people."""
        if self.status in (FAILED, SKIPPED):
            return f"{self.hostname}: {self.status}: {self.why}"
        text = f"{len(self.work.send)} sent, {len(self.work.remove)} removed"
        if dry_run:
            text = f"{len(self.work.send)} would be sent, {len(self.work.remove)} removed"
        left = [f"{self.work.left[word]} {_LEFT[word]}" for word in LEFT if self.work.left[word]]
        told = f"{self.hostname}: " + (text if not self.work.nothing else "nothing to do")
        told += f" ({', '.join(left)})" if left else ""
        if self.work.edited:
            told += f"; changed on the node and overwritten: {_some(self.work.edited)}"
        return told + ("; needs a reboot for the kernel" if self.kernel else "")

    def paths(self) -> list[str]:
        """Each path with what is done about it."""
        marked = [(path, "send") for path in self.work.send] + [(path, "remove") for path in self.work.remove]
        marked += [(path, "left, as --delete was not given") for path in self.work.undeleted]
        return [f"  {what} {shown(path)}" for path, what in sorted(marked)]

    def record(self) -> dict[str, object]:
        """For --json."""
        return {
            "node": self.hostname, "status": self.status, "why": self.why, "kernel": self.kernel,
            "seconds": round(self.seconds, 3), "sent": [shown(path) for path in self.work.send],
            "removed": [shown(path) for path in self.work.remove],
            "edited": [shown(path) for path in self.work.edited],
            "undeleted": [shown(path) for path in self.work.undeleted], "left": dict(sorted(self.work.left.items())),
        }  # fmt: skip


_LEFT = {
    "skipped": "left by the skip list", "module": "made by its modules", "hybrid": "on the network",
    "kernel": "of the kernel", "undeleted": "to be deleted with --delete", "own": "its own",
}  # fmt: skip


def is_up(node: Node) -> bool:
    """Whether a node is running its capsule, as far as it said."""
    return node.status == "ready"


def livesync(
    store: VnfsStore, registry: Registry, row: InstalledCapsule, nodes: Sequence[Node], request: Request
) -> Iterator[Result]:
    """Bring ``nodes`` to the current generation of a capsule, and tell of each, in their order.

    Raises CapsulekitError when nothing can be done for any. Once closed, or after an interrupt, nothing goes on.
    """
    need_root("bring nodes in step")
    with _prepared(store, registry, row, nodes, request) as sync, ThreadPoolExecutor(request.limit) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for node in nodes:
                waiting.append(pool.submit(sync.node, node))
                if len(waiting) >= 2 * request.limit:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            sync.stop.set()
            for one in waiting:
                one.cancel()


@contextmanager
def _prepared(
    store: VnfsStore, registry: Registry, row: InstalledCapsule, nodes: Sequence[Node], request: Request
) -> Iterator[_Sync]:
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="capsulekit-livesync-")))
        target = held.enter_context(generation_tree(store, row.name, row.identity))
        hybrid = held.enter_context(hybrid_tree(store, row.name, row.identity))
        stop = threading.Event()
        door = ssh.settings(store.paths, nodes, folder, stop)
        root = None if request.dry_run else held.enter_context(_view(store, row))
        sync = _Sync(store, registry, row, request, folder, target, hybrid, door, root, stop, held)
        yield sync


@contextmanager
def _view(store: VnfsStore, row: InstalledCapsule) -> Iterator[Path]:
    """The generation's local layers to read, with their ACLs."""
    told = store.manifest(row.name, row.identity)
    images = [Image(store.blob(layer.sha256)) for layer in told.layers]
    lists = [store.small(row.name, layer.acl, row.identity) or b"" for layer in told.layers if layer.acl]
    with views(store) as folder, merged(images, folder, acls=lists) as root:
        yield root


@dataclass
class _Sync:
    """What all nodes of one livesync share."""

    store: VnfsStore
    registry: Registry
    row: InstalledCapsule
    request: Request
    folder: Path
    target: Tree
    hybrid: Tree | None
    door: ssh.Ssh
    root: Path | None
    stop: threading.Event
    held: ExitStack
    _trees: dict[str, Tree] = field(default_factory=dict)
    _between: dict[str, Between] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.booted = self.registry.booted()
        self.matcher = skip_list(self.store, self.row).matcher()
        self.written = Written(site_catalog(self.store.paths), self.registry.roles())

    def node(self, node: Node) -> Result:
        """One node, from its first word to its last; nothing is raised."""
        began = time.monotonic()
        try:
            result = self._node(node)
        except CapsulekitError as wrong:
            result = Result(node.hostname, FAILED, wrong.message)
        except OSError as wrong:
            result = Result(node.hostname, FAILED, f"{wrong.strerror}: {wrong.filename or 'its files'}")
        return replace(result, seconds=time.monotonic() - began)

    def _node(self, node: Node) -> Result:
        told = self.booted.get(node.nodeid)
        if told is None:
            raise CapsulekitError("it is not known what it booted")
        outline = json.loads(told.plan)
        if outline.get("vnfs") != self.row.name:
            raise CapsulekitError(f"it runs {outline.get('vnfs') or 'no capsule that is known'}")
        if not is_up(node):
            return Result(node.hostname, SKIPPED, f"it is not up ({node.status or 'never heard of'})")
        if not ssh.host_keys(self.store.paths, node.nodeid):
            raise CapsulekitError("it has no SSH host key of this site's: activate module sshkeys, and boot it")
        under, last = str(outline.get("under") or outline["identity"]), str(outline["identity"])
        kernel = self._kernel(under)
        with tempfile.TemporaryDirectory(prefix="node-", dir=self.folder) as place:
            work = self._work(node, self._ask(node, Path(place))[1], under, last)
            if self.request.dry_run:
                return Result(node.hostname, SAME if work.nothing else DONE, work=work, kernel=kernel)
            if not work.nothing:
                self._change(node, work, Path(place))
                data, found = self._ask(node, Path(place))
                self._check(self._work(node, found, under, last))
                self.registry.record_tree(node.nodeid, data)
        self._record(node, told)
        return Result(node.hostname, SAME if work.nothing else DONE, work=work, kernel=kernel)

    def _ask(self, node: Node, place: Path) -> tuple[bytes, NodeTree]:
        with (place / "tree").open("w+b") as out:
            self.door.ask(node, ssh.LIST, out, MOST_BYTES, self.request.seconds)
            out.seek(0)
            data = out.read()
        found = parse_report(data)
        if found.cut:
            raise CapsulekitError("more was changed on it than its agent can tell: boot it again")
        return data, found

    def _work(self, node: Node, found: NodeTree, under: str, last: str) -> Work:
        """What is to be done. One node at a time: its list may be megabytes, and threads compute no quicker."""
        with self._lock:
            tree, between = self._tree(under), self._paths(under)
            newer = self._tree(last) if last not in (under, self.row.identity) else None
            rules = Rules(self.matcher, tree, newer, self.hybrid, self.request.delete, self.written.of(node))
            differences = compare(found, tree, self.target, between, last=self._tree(last), deep=True)
            return work_of(differences, rules)

    def _change(self, node: Node, work: Work, place: Path) -> None:
        """First what goes: a file may come in the place of a folder."""
        assert self.root is not None
        with (place / "out").open("w+b") as out:
            if work.remove:
                with _listed(place / "remove", reversed(work.remove)) as names:
                    self.door.ask(node, ssh.REMOVE, out, rsync.MOST_SAID, self.request.seconds, names)
            if work.send:
                with _listed(place / "send", iter(work.send)):
                    rsync.send(self.door, node, self.root, place / "send", out, self.request.seconds)

    def _check(self, left: Work) -> None:
        """What was asked for must be so now."""
        if not left.nothing:
            raise CapsulekitError(f"it still differs after all was sent: {_some(left.send + left.remove)}")

    def _record(self, node: Node, told: Booted) -> None:
        if json.loads(told.plan)["identity"] == self.row.identity:
            return
        if not self.registry.record_synced(node.nodeid, self.row.identity, told=told.time):
            raise CapsulekitError("it was booted again meanwhile")

    def _tree(self, identity: str) -> Tree:
        if identity == self.row.identity:
            return self.target
        if identity not in self._trees:
            try:
                self._trees[identity] = self.held.enter_context(generation_tree(self.store, self.row.name, identity))
            except CapsulekitError as wrong:
                raise CapsulekitError(
                    f"the generation that it booted ({identity[:16]}…) can't be compared: {wrong.message}; reboot it"
                ) from wrong
        return self._trees[identity]

    def _paths(self, under: str) -> Between:
        if under not in self._between:
            find: Callable[[], Iterator[str]] = lambda: differing(self._tree(under), self.target)  # noqa: E731
            self._between[under] = Between(find if under != self.row.identity else lambda: iter(()))
            self.held.callback(self._between[under].close)
        return self._between[under]

    def _kernel(self, under: str) -> bool:
        """Whether only a reboot brings all of it: another kernel, or other modules."""
        if under == self.row.identity:
            return False
        old, new = (self.store.digests(self.row.name, one) for one in (under, self.row.identity))
        names = ("boot/vmlinuz", "boot/initrd.img", "layers/modules.squashfs")
        return any(old.get(name) != new.get(name) for name in names)


@contextmanager
def _listed(path: Path, names: Iterator[str]) -> Iterator[IO[bytes]]:
    """A file of names, each ended by a zero byte, open at its beginning.

    With a dot before them: rsync takes a name that begins with "#" or ";" for a comment, here too.
    """
    with path.open("w+b") as out:
        out.writelines(b"./" + unescape(name) + b"\0" for name in names)
        out.flush()
        out.seek(0)
        yield out


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(shown(path) for path in paths[:MOST_NAMED]) + more
