"""How a node's files differ from its generation's, by content: from the list that its agent sent last."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from capsulekit.errors import CapsulekitError
from capsulekit.files import read_bounded
from provisioner.catalog import site_catalog
from provisioner.livesync.skip import MAX_LIST, fits, parse_skip, pattern
from provisioner.registry.booted import Booted
from provisioner.registry.model import Node
from provisioner.registry.registry import Registry
from provisioner.registry.trees import TreeMark
from provisioner.trees.compare import ADDED, ATTRIBUTES, CHANGED, DELETED, UNKNOWN, Difference, compare
from provisioner.trees.entry import FOLDER, shown
from provisioner.trees.generation import Between, Tree, differing, generation_tree
from provisioner.trees.report import parse_report
from provisioner.trees.written import Written
from provisioner.vnfs.store import VnfsStore

FILE = "drift.skip"  # the site's list, in its configuration
# What a running system writes of its own accord (beside the places that the agent does not even look at).
DEFAULT = """\
/etc/.pwd.lock
/etc/.updated
/etc/adjtime
/etc/ld.so.cache
/etc/mtab
/etc/resolv.conf
/root/.*_history
/var/.updated
/var/lib/NetworkManager
/var/lib/chrony
/var/lib/dbus
/var/lib/dhcp
/var/lib/logrotate
/var/lib/misc
/var/lib/nfs
/var/lib/private
/var/lib/rsyslog
/var/lib/systemd
/var/lib/urandom
"""
WORDS = (ADDED, CHANGED, DELETED, ATTRIBUTES, UNKNOWN)
MOST_PATHS = 1000  # that are named for one node
# The agent looks every ten minutes and reports every one: later than this something is wrong.
OLD_SECONDS = 2 * 3600.0


@dataclass(frozen=True)
class FileDrift:
    """One node's files: (word, path) of the first differences, how many there are by word, how many are its modules'.

    ``seen`` is when the node last said so (epoch seconds); ``problem`` says why nothing, or not all, is known.
    """

    paths: tuple[tuple[str, str], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    modules: int = 0
    seen: float | None = None
    problem: str = ""

    @property
    def differs(self) -> bool:
        """Whether a file was changed on the node."""
        return bool(self.counts)

    def lines(self, verbose: bool) -> list[str]:
        """For people."""
        told = [f"files: {self.problem}"] if self.problem else []
        if self.counts:
            told.append("files: " + ", ".join(f"{self.counts[word]} {word}" for word in WORDS if self.counts[word]))
        if verbose:
            told += [f"files: {word}: {path}" for word, path in self.paths]
            more = sum(self.counts.values()) - len(self.paths)
            told += [f"files: {more} more"] if more else []
        return told

    def record(self) -> dict[str, object]:
        """For --json."""
        return {
            "counts": dict(sorted(self.counts.items())), "paths": [[word, path] for word, path in self.paths],
            "modules": self.modules, "seen": self.seen, "problem": self.problem,
        }  # fmt: skip


class FileDrifts:
    """Compares the nodes of one site, one after the other; use it as a context manager."""

    def __init__(self, store: VnfsStore, registry: Registry) -> None:
        """Raises CapsulekitError when the site's list of what does not count is none."""
        self.store, self.registry = store, registry
        self._marks: dict[str, TreeMark] = registry.tree_marks()
        self._held = ExitStack()
        self._trees: dict[tuple[str, str], Tree | CapsulekitError] = {}
        self._between: dict[tuple[str, str, str], Between] = {}
        self._skip = _skip(store)
        self._written = Written(site_catalog(store.paths), registry.roles())

    def __enter__(self) -> FileDrifts:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def of(self, node: Node, booted: Booted | None) -> FileDrift:
        """One node's files."""
        mark = self._marks.get(node.nodeid)
        if booted is None or mark is None:
            # A node that is not up yet has not had the time.
            return FileDrift(problem="its agent sent no list of them" if booted and node.status == "ready" else "")
        if mark.seen < booted.time:
            return FileDrift(
                seen=mark.seen, problem=f"not known: its list is of {_when(mark.seen)}, before its last boot"
            )
        try:
            found = self._compared(node, json.loads(booted.plan), mark)
        except CapsulekitError as wrong:
            return FileDrift(seen=mark.seen, problem=f"can't be compared: {wrong.message}")
        return found

    def _compared(self, node: Node, outline: dict[str, str], mark: TreeMark) -> FileDrift:
        data = self.registry.tree(node.nodeid)
        found = parse_report(data or b"")
        name, last = outline.get("vnfs", ""), outline.get("identity", "")
        first = outline.get("under", last)
        under, target = self._tree(name, first), self._tree(name, last)
        paths: list[tuple[str, str]] = []
        counts: Counter[str] = Counter()
        modules = sum(one.kind != "d" for one in found.node.values())
        theirs = self._written.of(node)
        for one in compare(found, under, target, self._paths(name, first, last)):
            if one.path in theirs or _leads(one, theirs):
                modules += 1
                continue
            if fits(self._skip, one.path):
                continue
            counts[one.kind] += 1
            if len(paths) < MOST_PATHS:
                paths.append((one.kind, shown(one.path)))
        problem = "its list is cut: there is more" if found.cut else ""
        if time.time() - mark.seen > OLD_SECONDS:
            problem = f"as of {_when(mark.seen)}; not heard of since"
        return FileDrift(tuple(paths), counts, modules, mark.seen, problem)

    def _tree(self, name: str, identity: str) -> Tree:
        key = (name, identity)
        if key not in self._trees:
            try:
                self._trees[key] = self._held.enter_context(generation_tree(self.store, name, identity))
            except CapsulekitError as wrong:
                self._trees[key] = wrong
        found = self._trees[key]
        if isinstance(found, CapsulekitError):
            raise found
        return found

    def _paths(self, name: str, first: str, last: str) -> Between | tuple[str, ...]:
        if first == last:
            return ()
        key = (name, first, last)
        if key not in self._between:
            find: Callable[[], Iterator[str]] = lambda: differing(self._tree(name, first), self._tree(name, last))  # noqa: E731
            self._between[key] = Between(find)
            self._held.callback(self._between[key].close)
        return self._between[key]


def _leads(found: Difference, theirs: frozenset[str]) -> bool:
    """Whether it is a folder that was made for what modules write in it."""
    made = found.kind == ADDED and found.has is not None and found.has.kind == FOLDER
    return made and any(path.startswith(f"{found.path}/") for path in theirs)


def _skip(store: VnfsStore) -> re.Pattern[str]:
    file = store.paths.config / FILE
    found = parse_skip(read_bounded(file, MAX_LIST) if file.exists() else DEFAULT.encode(), str(file))
    return pattern(found.globs or ("/proc",))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
