"""What a node has, path by path, against what it should have. Pure: lists in, differences out."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from provisioner.trees.entry import FOLDER, GONE, Entry, key_of, parents
from provisioner.trees.report import NodeTree

ADDED, CHANGED, DELETED, ATTRIBUTES = "added", "changed", "deleted", "mode or owner"
UNKNOWN = "not looked at"


class Lookup(Protocol):
    """A generation's tree."""

    def get(self, path: str) -> Entry | None:
        """The entry of a path."""

    def below(self, path: str) -> Iterator[Entry]:
        """All in a folder."""


@dataclass(frozen=True)
class Difference:
    """A path (escaped) where a node is not as it should be: what it has, what it should have (None: nothing).

    ``edited``: it was changed on the node itself. ``module``: its modules made it at boot, so it is not the capsule's.
    ``under``: what the generation that it booted has there.
    """

    path: str
    has: Entry | None
    wants: Entry | None
    edited: bool = False
    module: bool = False
    under: Entry | None = None

    @property
    def kind(self) -> str:
        """One word for it, as seen from what it should be."""
        if self.has is None:
            return DELETED
        if self.wants is None:
            return ADDED
        if self.has.alike(self.wants):
            return ATTRIBUTES
        unknown = self.has.kind == self.wants.kind == "f" and self.has.what == "-" and self.has.size == self.wants.size
        return UNKNOWN if unknown else CHANGED


def compare(
    found: NodeTree,
    under: Lookup,
    target: Lookup,
    between: Iterable[str] = (),
    *,
    last: Lookup | None = None,
    deep: bool = False,
) -> Iterator[Difference]:
    """Where a node differs from ``target``, in order.

    ``under`` is the generation that it booted, ``between`` the sorted paths in which that differs from ``target``, and
    ``last`` the one that a livesync brought it to. ``deep``: of a folder that is gone or replaced, all that belongs
    in it too, not only the folder.
    """
    node = _Node(found, under)
    more = (one.path for path in found.upper for one in _inside(found, target, path)) if deep else ()
    streams = (sorted(found.upper, key=key_of), between, sorted(set(more), key=key_of))
    paths = heapq.merge(*streams, key=key_of)
    hidden = "\0"
    for path, _ in groupby(paths):
        if not deep and key_of(path).startswith(hidden):
            continue  # the folder above was said to be gone
        has, wants = node.has(path), node.wants(path, target)
        if has is wants is None or (has and wants and has.same(wants)):
            continue
        before = node.booted(path)
        written = path in found.upper or _covered(found.upper, path)
        mine = written and not _same(has, before) and not _same(has, last.get(path) if last else before)
        yield Difference(path, has, wants, edited=mine, module=node.is_modules(path), under=under.get(path))
        if has is None or (has.kind != FOLDER and wants and wants.kind == FOLDER):
            hidden = key_of(path) + "\x01"


def _inside(found: NodeTree, target: Lookup, path: str) -> Iterator[Entry]:
    """What belongs into a folder that is one no more on the node."""
    wants = target.get(path) if found.upper[path].kind != FOLDER else None
    return target.below(path) if wants and wants.kind == FOLDER else iter(())


def _same(one: Entry | None, two: Entry | None) -> bool:
    return one is two or (one is not None and two is not None and one.same(two))


class _Node:
    """One node's root: what was written, over what its modules made, over the generation that it booted."""

    def __init__(self, found: NodeTree, under: Lookup) -> None:
        self.found, self.under = found, under

    def has(self, path: str) -> Entry | None:
        """What is there."""
        own = self.found.upper.get(path)
        if own is not None:
            return None if own.kind == GONE else own
        return None if _covered(self.found.upper, path) else self.booted(path)

    def booted(self, path: str) -> Entry | None:
        """What was there when it had booted."""
        own = self.found.node.get(path)
        if own is not None:
            return None if own.kind == GONE else own
        return None if _covered(self.found.node, path) else self.under.get(path)

    def wants(self, path: str, target: Lookup) -> Entry | None:
        """What should be there: what its modules made, or else what the generation has."""
        own = self.found.node.get(path)
        if own is not None and own.kind != FOLDER:
            return None if own.kind == GONE else own
        if _covered(self.found.node, path):
            return None
        wants = target.get(path)
        # A folder is in the node's layer as soon as something in it is: unless the generation changes it, it is as is.
        if own is not None and (wants is None or _same(wants, self.under.get(path))):
            return own
        return wants

    def is_modules(self, path: str) -> bool:
        """Whether its modules made it, or took it away."""
        own = self.found.node.get(path)
        return (own is not None and own.kind != FOLDER) or _covered(self.found.node, path)


def _covered(entries: Mapping[str, Entry], path: str) -> bool:
    """Whether what lies above the path there is no folder, so that nothing below shows."""
    return any(above in entries and entries[above].kind != FOLDER for above in parents(path))
