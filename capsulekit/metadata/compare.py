"""What differs between two capsules: paths, packages, parts of the recipe, bytes by package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.capsule import layout
from capsulekit.capsule.manifest import EDIT, Manifest
from capsulekit.capsule.read import CapsuleFile
from capsulekit.edit import acls
from capsulekit.image.listing import FILE, Entry, list_digested
from capsulekit.lock.model import SETS, Package
from capsulekit.metadata.owners import Owners
from capsulekit.metadata.tree import layers_of

ADDED, REMOVED = "added", "removed"
Seen = tuple[str, Entry]  # the layer that a node sees a path in, and what it is there


@dataclass(frozen=True)
class Side:
    """One of the two capsules. ``sums`` are hex sha256 by member; only if ``verified`` is it more than it claims."""

    path: Path
    capsule: CapsuleFile
    manifest: Manifest
    sums: Mapping[str, str]
    identity: str
    owners: Owners
    verified: bool
    reason: str


@dataclass(frozen=True, order=True)
class PathChange:
    """A path (relative to the root) and what differs: added, removed, or some of type, content, mode, owner …

    ``grown`` is how many bytes the file has more in the second capsule.
    """

    path: str
    what: tuple[str, ...]
    grown: int


@dataclass(frozen=True, order=True)
class PackageChange:
    """A package of a part of the lock in both versions; "" where it is not there."""

    name: str
    part: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before:
            return f"{self.name} {self.after} {ADDED}"
        return f"{self.name} {self.before} → {self.after}" if self.after else f"{self.name} {self.before} {REMOVED}"


def members(side: CapsuleFile) -> dict[str, str]:
    """Hex sha256 by member, as SHA256SUMS says. Raises TrustError."""
    return layout.load_sums(side.sums())


def path_changes(one: Side, two: Side) -> list[PathChange]:
    """Every path that differs, sorted.

    Contents are compared by digest; a layer is read for that, once, where a file of it may differ from one of as many
    bytes in another layer.
    """
    before, after = ({path: (layer, entry) for layer, path, entry in s.owners.tree.paths()} for s in (one, two))
    both = {path for path in before.keys() & after.keys() if not _is_same(one, two, before[path], after[path])}
    pairs = ((path, before[path][1], after[path][1]) for path in both)
    alike = [path for path, a, b in pairs if a.kind == b.kind == FILE and a.size == b.size]
    _digest(one, before, alike)
    _digest(two, after, alike)
    lists = _acls(one), _acls(two)
    differing = both | (before.keys() ^ after.keys())
    found = []
    for path in {*differing, *lists[0], *lists[1]}:
        was, now = before.get(path), after.get(path)
        what = _differences(was, now) if path in differing else ()
        if was and now and lists[0].get(path) != lists[1].get(path):
            what = (*what, "ACL")
        if what:
            found.append(PathChange(path, what, (now[1].size if now else 0) - (was[1].size if was else 0)))
    return sorted(found)


def _is_same(one: Side, two: Side, was: Seen, now: Seen) -> bool:
    """Whether both are of a layer that the two capsules have in common."""
    return was[0] == now[0] and one.sums[was[0]] == two.sums[now[0]]


def _digest(side: Side, seen: dict[str, Seen], paths: Sequence[str]) -> None:
    """Fill in the digests of some files."""
    layers = layers_of(side.capsule, side.manifest)
    for name in {seen[path][0] for path in paths}:
        digested = list_digested(layers[name])
        seen |= {path: (name, digested[path]) for path in paths if seen[path][0] == name}


def _differences(was: Seen | None, now: Seen | None) -> tuple[str, ...]:
    if was is None or now is None:
        return (ADDED,) if now else (REMOVED,) if was else ()
    (layer, a), (layer_now, b) = was, now
    pairs = {
        "type": (a.kind, b.kind),
        "content": ((a.size, a.digest), (b.size, b.digest)),
        "target": (a.target, b.target),
        "mode": (a.mode, b.mode),
        "owner": ((a.uid, a.gid), (b.uid, b.gid)),
        "hard link": (a.hard, b.hard),
        "layer": (layer, layer_now),
    }
    # An edit has what it changes, and the folders on the way to it, in a layer of its own: that is no difference.
    edited = EDIT.fullmatch(layer) or EDIT.fullmatch(layer_now)
    return tuple(name for name, (x, y) in pairs.items() if x != y and not (edited and name == "layer"))


def _acls(side: Side) -> dict[str, dict[str, bytes]]:
    """Path -> its ACLs by kind, as the lists beside the layers come to on a node."""
    lists = [
        side.capsule.read_member(layer.acl, limit=acls.MAX_LIST)
        for layer in side.manifest.layers
        if layer.acl is not None and layer.acl in side.capsule.members
    ]
    found: dict[str, dict[str, bytes]] = {}
    for (path, kind), value in acls.effective(lists).items():
        if value and not (kind == acls.ACCESS and acls.is_minimal(value)):
            found.setdefault(os.fsdecode(path), {})[kind] = value
    return found


def package_changes(one: Side, two: Side) -> list[PackageChange]:
    """Packages that came, went, or changed their version or their file; nothing for locks of another format."""
    locks = one.owners.lock, two.owners.lock
    if locks[0] is None or locks[1] is None:
        return []
    found = []
    for part in SETS:
        before, after = ({f"{p.name}:{p.arch}": p for p in lock.sets[part]} for lock in locks if lock)
        for name in before.keys() | after.keys():
            was, now = before.get(name), after.get(name)
            if was is None or now is None or (was.version, was.sha256) != (now.version, now.sha256):
                shown = (now or was or _nothing()).name
                found.append(PackageChange(shown, part, _version(was, now), _version(now, was)))
    return sorted(found)


def _nothing() -> Package:
    raise AssertionError("a name in neither of two locks")


def _version(package: Package | None, other: Package | None) -> str:
    """The version; with the file's digest where another file has the same one."""
    if package is None:
        return ""
    same = other is not None and other.version == package.version
    return f"{package.version} ({package.sha256[:12]})" if same else package.version


def recipe_changes(one: Side, two: Side) -> dict[str, str]:
    """Part of the recipe ("file /etc/motd", "service ssh.service" …) -> added, removed or changed."""
    before = {owner: value for owner, (_, value) in one.owners.recipe.owners.items()}
    after = {owner: value for owner, (_, value) in two.owners.recipe.owners.items()}
    found = dict.fromkeys(after.keys() - before.keys(), ADDED)
    found |= dict.fromkeys(before.keys() - after.keys(), REMOVED)
    found |= {owner: "changed" for owner in before.keys() & after.keys() if before[owner] != after[owner]}
    return {owner: how for owner, how in sorted(found.items()) if not owner.startswith("package ")}
