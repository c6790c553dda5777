"""What an edit changed, by package and path, for people and for a generation's history."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capsulekit.edit.clean import Cleaner
from capsulekit.edit.packages import PackageChange, files_of, owner_of, package_changes
from capsulekit.edit.stack import UPPER, below
from capsulekit.edit.walk import ADDED, CHANGED, REMOVED, WHITEOUT, Told, walk
from capsulekit.image.survey import shown
from capsulekit.rootfs.table import ANY

MOST_LINES = 20  # of one kind, where not all were asked for
MOST_OF_A_FOLDER = 3


@dataclass(frozen=True, order=True)
class PathChange:
    """A path (relative to the root, bytes that are no UTF-8 as surrogates) and its kind; ``what`` says what differs.

    ``kind`` is folder, file, link, fifo, socket or a device; "" for what was removed. ``what`` is ("added",),
    ("removed",), or some of type, content, mode, owner, time, ACL, xattr, hard link, replaced.
    """

    path: str
    kind: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        path = shown(os.fsencode(self.path)) + ("/" if self.kind == "folder" else "")
        return f"/{path} ({', '.join(self.what)})" if self.what not in ((ADDED,), (REMOVED,)) else f"/{path}"


@dataclass(frozen=True)
class Changes:
    """All that an edit changed. ``size`` is in bytes, of the files to be stored; ``cleaned`` is not stored as it is.

    ``owners`` says to which of the packages a path belongs.
    """

    added: tuple[PathChange, ...] = ()
    changed: tuple[PathChange, ...] = ()
    removed: tuple[PathChange, ...] = ()
    packages: tuple[PackageChange, ...] = ()
    cleaned: tuple[str, ...] = ()
    size: int = 0
    owners: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to pack; what is only cleaned is nothing."""
        return not (self.added or self.changed or self.removed)

    def summary(self) -> dict[str, Any]:
        """For a generation's history: numbers of paths, bytes, and packages with their versions; JSON's types only."""
        kinds: dict[str, Any] = {ADDED: {}, CHANGED: {}, REMOVED: {}}
        for package in self.packages:
            if package.before and package.after:
                kinds[CHANGED][package.name] = [package.before, package.after]
            else:
                kinds[ADDED if package.after else REMOVED][package.name] = package.after or package.before
        paths = {ADDED: len(self.added), CHANGED: len(self.changed), REMOVED: len(self.removed)}
        return {"paths": paths, "packages": kinds, "bytes": self.size, "cleaned": len(self.cleaned)}

    def lines(self, verbose: bool = False) -> list[str]:
        """For people: packages, then paths; those of the packages, and long lists, only when ``verbose``."""
        return list(self._lines(verbose))

    def _lines(self, verbose: bool) -> Iterator[str]:
        owners = dict(self.owners)
        counts = Counter(owners.values())
        for package in self.packages:
            count = counts[package.name]
            yield f"package {package}" + (f" ({count} paths)" if count and not verbose else "")
        for word, group in ((ADDED, self.added), (CHANGED, self.changed), (REMOVED, self.removed)):
            told = [change for change in group if verbose or change.path not in owners]
            yield from _cut([f"{word} {change}" for change in told], verbose, f"{word} ")
        cleaned = self.cleaned if verbose else _folded(self.cleaned)
        yield from _cut([f"cleaned /{shown(os.fsencode(path))}" for path in cleaned], verbose, "cleaned ")
        if self.empty:
            yield "nothing was changed"


def _cut(lines: list[str], verbose: bool, word: str) -> list[str]:
    if verbose or len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"{word}{len(lines) - MOST_LINES} more paths"]


def _folded(paths: Sequence[str]) -> list[str]:
    """Paths of one folder as that folder, where they are many."""
    folders = Counter(path.rpartition("/")[0] for path in paths)
    found: dict[str, None] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        many = folder and folders[folder] > MOST_OF_A_FOLDER
        found[f"{folder}/* ({folders[folder]} paths)" if many else path] = None
    return list(found)


def changes(folder: Path, *, family: str = ANY) -> Changes:
    """What a mounted edit changed so far (in ``frozen``, or as a dry run's answer while it may still change).

    ``family`` is that of the capsule's packages (capsulekit.rootfs.table). Raises CapsulekitError for what could not be
    stored.
    """
    with below(folder) as view:
        told = walk(folder / UPPER, view, Cleaner(family))
        return describe(folder, view, told)


def describe(folder: Path, view: Path, told: Told) -> Changes:
    """The changes of a walk over an edit's upper folder; ``view`` is what is below it."""
    groups: dict[str, list[PathChange]] = {ADDED: [], CHANGED: [], REMOVED: []}
    for item in told.items:
        if item.what:
            word = item.what[0] if item.what[0] in groups else CHANGED
            kind = "" if item.kind == WHITEOUT else item.kind
            groups[word].append(PathChange(os.fsdecode(item.path), kind, item.what))
    groups[REMOVED] += [PathChange(os.fsdecode(path), "", (REMOVED,)) for path in told.hidden]
    packages = package_changes((item.path for item in told.items), view, folder / UPPER)
    after = files_of((p for p in packages if p.after), folder / UPPER)
    owners = {**files_of((p for p in packages if not p.after), view), **after}
    every = [change.path for group in groups.values() for change in group]
    return Changes(
        added=tuple(groups[ADDED]),
        changed=tuple(groups[CHANGED]),
        removed=tuple(sorted(groups[REMOVED])),
        packages=tuple(packages),
        cleaned=tuple(os.fsdecode(path) for path in told.cleaned),
        size=sum(item.size for item in told.items if not item.hard),
        owners=tuple(sorted((path, owner) for path in every if (owner := owner_of(path, owners, packages)))),
    )
