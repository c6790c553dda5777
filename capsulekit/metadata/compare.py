"""What differs between two capsules: paths, packages, parts of the recipe, bytes by package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from capsulekit.capsule import layout
from capsulekit.capsule.manifest import Manifest
from capsulekit.capsule.read import CapsuleFile
from capsulekit.image.listing import Entry, list_digested
from capsulekit.lock.model import SETS, Package
from capsulekit.metadata.owners import Owners
from capsulekit.metadata.tree import WHITEOUT, layers_of

ADDED, REMOVED = "added", "removed"


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
    """Every path that differs, sorted. Only layers with differing digests are read, each once, contents as digests."""
    before, after = _listing(one, two), _listing(two, one)
    acls = _acls(one), _acls(two)
    found = []
    for path in before.keys() | after.keys() | acls[0].keys() | acls[1].keys():
        was, now = before.get(path), after.get(path)
        what = _differences(was, now)
        if acls[0].get(path) != acls[1].get(path) and what not in ((ADDED,), (REMOVED,)):
            what = (*what, "ACL")
        if what:
            size = (now[1].size if now else 0) - (was[1].size if was else 0)
            found.append(PathChange(path, what, size))
    return sorted(found)


def _listing(side: Side, other: Side) -> dict[str, tuple[str, Entry]]:
    """Path -> (layer, entry) of those layers that the other capsule does not have as they are."""
    found: dict[str, tuple[str, Entry]] = {}
    for name, layer in layers_of(side.capsule, side.manifest).items():
        if side.sums[name] != other.sums.get(name):
            for path, entry in list_digested(layer).items():
                found.setdefault(path, (name, entry))
    return {path: (name, entry) for path, (name, entry) in found.items() if (entry.kind, entry.target) != WHITEOUT}


def _differences(was: tuple[str, Entry] | None, now: tuple[str, Entry] | None) -> tuple[str, ...]:
    if was is None or now is None:
        return (ADDED,) if now else (REMOVED,) if was else ()
    (layer, a), (layer_now, b) = was, now
    pairs = {
        "type": (a.kind, b.kind),
        "content": (a.digest, b.digest),
        "target": (a.target, b.target),
        "mode": (a.mode, b.mode),
        "owner": ((a.uid, a.gid), (b.uid, b.gid)),
        "hard link": (a.hard, b.hard),
        "layer": (layer, layer_now),
    }
    return tuple(name for name, (x, y) in pairs.items() if x != y)


def _acls(side: Side) -> dict[str, tuple[str, ...]]:
    """Path -> its ACL lines, out of the lists beside the layers (tabs between path, kind and entries)."""
    found: dict[str, tuple[str, ...]] = {}
    for name in side.capsule.members:
        if name.endswith(".acl"):
            for line in side.capsule.read_member(name, limit=64 << 20).decode("utf-8", "replace").splitlines():
                path, _, rest = line.partition("\t")
                real = unquote_to_bytes(path).decode("utf-8", "surrogateescape")
                found[real] = (*found.get(real, ()), rest)
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
