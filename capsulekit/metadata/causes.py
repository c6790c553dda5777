"""Why two capsules differ: every changed path is put down to the change of the inputs that explains it best."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from capsulekit.capsule.manifest import EDIT
from capsulekit.metadata.compare import ADDED, REMOVED, PackageChange, PathChange, Side
from capsulekit.metadata.owners import Cause

UNEXPLAINED = "nothing that was given: the build of one of them was not reproducible"
UNKNOWN = "unknown: a lock of another format was not compared"
INSTALLED = "packages' install scripts and databases"
# Where systemctl and update-rc.d keep what is switched on.
UNIT_LINKS = ("etc/systemd/", "etc/rc")
# How the recipe names what a phase applies.
_PARTS: dict[str, tuple[str, ...]] = {
    "file": ("file",),
    "script": ("script",),
    "service": ("service",),
    "user": ("user",),
    "group": ("group",),
}
_PARTS |= {"users": ("user", "group"), "services": ("service",)}


@dataclass(frozen=True)
class Group:
    """The paths that one cause explains, sorted, and how many bytes their files grew by."""

    cause: str
    changes: tuple[PathChange, ...]

    @property
    def grown(self) -> int:
        """Bytes that the files have more in the second capsule."""
        return sum(change.grown for change in self.changes)


@dataclass(frozen=True)
class Explainer:
    """The changes of the inputs, and both capsules' ledgers."""

    one: Side
    two: Side
    packages: Sequence[PackageChange]
    recipe: Mapping[str, str]

    def group(self, changes: Sequence[PathChange]) -> list[Group]:
        """All changes by cause, the cause with most paths first."""
        found: dict[str, list[PathChange]] = defaultdict(list)
        for change in changes:
            found[self._cause(change)].append(change)
        groups = [Group(cause, tuple(paths)) for cause, paths in found.items()]
        return sorted(groups, key=lambda group: (-len(group.changes), group.cause))

    def _cause(self, change: PathChange) -> str:
        """The first explanation, in the order of how much it says."""
        causes = [*self.two.owners.of(change.path), *self.one.owners.of(change.path)]
        steps = (
            self._edit,
            self._recipe,
            self._package,
            self._settings,
            self._unit,
            self._made,
            self._removing,
            self._unchanged,
        )
        for explain in steps:
            for text in explain(change, causes):
                return text
        return UNEXPLAINED if self.one.owners.lock and self.two.owners.lock else UNKNOWN

    def _edit(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """An edit at a site that one of them has and the other has not: it knows nothing of the inputs."""
        del causes
        for side, other in ((self.two, self.one), (self.one, self.two)):
            found = side.owners.tree.find(change.path)
            if found and EDIT.fullmatch(found[0]) and other.sums.get(found[0]) != side.sums[found[0]]:
                yield f"edited at a site: {found[0]}"

    def _recipe(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """A part of the recipe that came, went or changed."""
        del change
        for cause in causes:
            for kind in _PARTS.get(cause.kind, ()):
                for owner, how in self.recipe.items():
                    part, _, name = owner.partition(" ")
                    if part == kind and cause.name in (name, ""):
                        yield f"recipe: {owner} {how}"

    def _package(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """A package with the path that came, went or changed."""
        del change
        for cause in causes:
            if cause.kind in ("package", "kernel"):
                part = "kernel" if cause.kind == "kernel" else "rootfs"
                name = cause.name.partition(":")[0]
                if (name, part) in self._changed:
                    yield f"{cause.kind} {self._changed[name, part]}"

    def _settings(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """The normaliser, the hybridize globs, the build's time, the list of kernel modules."""
        a, b = self.one.owners.lock, self.two.owners.lock
        touched = "content" in change.what and any(cause.kind == "normaliser" for cause in causes)
        if touched and a and b and a.normaliser != b.normaliser:
            yield f"normaliser {a.normaliser} → {b.normaliser}"
        if "layer" in change.what and self.one.manifest.hybridize != self.two.manifest.hybridize:
            yield "recipe: hybridize changed"
        if touched and self.one.manifest.epoch != self.two.manifest.epoch:
            yield f"build epoch {self.one.manifest.epoch} → {self.two.manifest.epoch}"
        if any(cause.kind == "kernel" for cause in causes) and self._section("kernel"):
            yield "recipe: [kernel] changed"

    def _section(self, name: str) -> bool:
        return self.one.owners.recipe.table.get(name) != self.two.owners.recipe.table.get(name)

    def _unit(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """A unit that was switched: links that are gone are in no ledger, but have its name."""
        del causes
        if change.what in ((ADDED,), (REMOVED,)) and change.path.startswith(UNIT_LINKS):
            for owner, how in self.recipe.items():
                kind, _, name = owner.partition(" ")
                if kind == "service" and re.split(r"[@.]", name)[0] in change.path:
                    yield f"recipe: {owner} {how}"

    def _removing(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """What a script takes away is in no ledger: a path that only one of them has may be its doing."""
        del causes
        if change.what in ((ADDED,), (REMOVED,)):
            for owner, how in self.recipe.items():
                if owner.startswith("script "):
                    yield f"recipe: {owner} {how} (which may remove the path)"

    def _made(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """What install scripts made, when some package changed."""
        del change
        if any(cause.kind == "install" for cause in causes) and any(p.part == "rootfs" for p in self.packages):
            yield INSTALLED

    def _unchanged(self, change: PathChange, causes: Sequence[Cause]) -> Iterator[str]:
        """A script that did not change may see what did."""
        del change
        for cause in causes:
            if cause.kind in _PARTS:
                changed = bool(self.packages or self.recipe)
                yield f"{cause}, unchanged: {'it acts on what did change' if changed else 'its output varies'}"

    @cached_property
    def _changed(self) -> dict[tuple[str, str], PackageChange]:
        return {(change.name, change.part): change for change in self.packages}
