"""What differs between two capsules and why: by package, path, size and kernel, grouped by cause."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capsulekit.capsule.inspect import inspect
from capsulekit.capsule.manifest import EDIT
from capsulekit.capsule.read import open_capsule
from capsulekit.metadata.causes import Explainer, Group
from capsulekit.metadata.compare import (
    ADDED,
    REMOVED,
    PackageChange,
    Side,
    members,
    package_changes,
    path_changes,
    recipe_changes,
)
from capsulekit.metadata.owners import load_owners
from capsulekit.metadata.paths import escape
from capsulekit.metadata.ram import sizes
from capsulekit.output import table
from capsulekit.trust.minisign import PublicKey

# Values of the manifest that are told as they are; layers, digests and lists are told by what they mean.
_SAID = ("name", "version", "arch", "distro", "release", "epoch", "init", "cmdline", "kernel_release")
# So many paths of a cause, and packages by size, are shown to people.
SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """Two capsules compared. Pairs are (first, second).

    ``settings`` are the single values that differ, by name; ``members`` are the names whose bytes differ; ``sizes`` are
    bytes of the capsule file, of its layers by member name, and ``unpacked`` bytes of the root by package (only those
    that differ). ``silent`` are layers whose bytes differ though none of their paths does.
    """

    files: tuple[str, str]
    names: tuple[str, str]
    identities: tuple[str, str]
    unverified: tuple[str, ...]
    settings: Mapping[str, tuple[str, str]]
    packages: tuple[PackageChange, ...]
    recipe: Mapping[str, str]
    members: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    unpacked: Mapping[str, tuple[int, int]]
    causes: tuple[Group, ...]
    silent: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether both are one capsule: the same signed sums, so the same bytes in every member."""
        return self.identities[0] == self.identities[1]


def diff(one: Path, two: Path, keys: Iterable[PublicKey], *, revoked: Collection[PublicKey] = ()) -> Difference:
    """Compare two capsule files; what no known key signed is compared too, and said to be unverified.

    Raises CapsulekitError, or TrustError for a malformed file or one that a known key signed and that does not hold.
    """
    known = list(keys)
    with ExitStack() as opened:
        a, b = (_side(path, known, revoked, opened) for path in (one, two))
        packages = package_changes(a, b)
        recipe = recipe_changes(a, b)
        changes = path_changes(a, b)
        unpacked = _pairs(*(sizes(s.owners.tree, s.owners.packages) for s in (a, b))) if changes else {}
        return Difference(
            files=(str(one), str(two)),
            names=(a.manifest.full_name, b.manifest.full_name),
            identities=(a.identity, b.identity),
            unverified=tuple(f"{side.path}: {side.reason}" for side in (a, b) if not side.verified),
            settings=dict(_settings(a, b)),
            packages=tuple(packages),
            recipe=recipe,
            members=tuple(sorted(n for n in a.sums.keys() | b.sums.keys() if a.sums.get(n) != b.sums.get(n))),
            sizes=_sizes(a, b),
            unpacked=unpacked,
            causes=tuple(Explainer(a, b, packages, recipe).group(changes)),
            silent=_silent(a, b) if not changes else (),
        )


def _side(path: Path, keys: list[PublicKey], revoked: Collection[PublicKey], opened: ExitStack) -> Side:
    seen = inspect(path, keys, revoked=revoked)
    capsule = opened.enter_context(open_capsule(path))
    owners = load_owners(capsule, seen.manifest)
    return Side(path, capsule, seen.manifest, members(capsule), seen.identity, owners, seen.verified, seen.reason)


def _settings(one: Side, two: Side) -> Iterator[tuple[str, tuple[str, str]]]:
    """Single values that differ: of the manifest, of the lock, and the level the layers were packed with."""
    pairs = {name: (getattr(one.manifest, name), getattr(two.manifest, name)) for name in _SAID}
    pairs["hybridize"] = (" ".join(one.manifest.hybridize), " ".join(two.manifest.hybridize))
    level = [side.owners.recipe.table.get("image", {}).get("level", "default") for side in (one, two)]
    pairs["level"] = (level[0], level[1])
    a, b = one.owners.lock, two.owners.lock
    if a and b:
        pairs["normaliser"] = (a.normaliser, b.normaliser)
        pairs |= {f"tool {t}": (a.tools.get(t, ""), b.tools.get(t, "")) for t in sorted({*a.tools, *b.tools})}
        indexes = [{x.suite: x.release for x in lock.archives} for lock in (a, b)]
        suites = sorted({*indexes[0], *indexes[1]})
        pairs |= {f"index of {s}": (indexes[0].get(s, "")[:12], indexes[1].get(s, "")[:12]) for s in suites}
    for name, (x, y) in pairs.items():
        if x != y:
            yield name, (str(x), str(y))


def _pairs(one: Mapping[str, int], two: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """(first, second) of every name whose numbers differ, the largest change first."""
    found = {n: (one.get(n, 0), two.get(n, 0)) for n in one.keys() | two.keys() if one.get(n, 0) != two.get(n, 0)}
    return dict(sorted(found.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])))


def _sizes(one: Side, two: Side) -> dict[str, tuple[int, int]]:
    """Bytes of the file and of every layer and boot file, those that are the same too."""
    found = {"capsule": (one.path.stat().st_size, two.path.stat().st_size)}
    for name in (*one.capsule.members, *two.capsule.members):
        if name.startswith(("layers/", "boot/")):
            was, now = one.capsule.members.get(name), two.capsule.members.get(name)
            found[name] = (was.size if was else 0, now.size if now else 0)
    return found


def _silent(one: Side, two: Side) -> tuple[str, ...]:
    """Layers whose bytes differ; also an edit that only one of them has, such as one of capabilities alone."""
    differing = {n for n in one.sums.keys() | two.sums.keys() if one.sums.get(n) != two.sums.get(n)}
    both = one.sums.keys() & two.sums.keys()
    return tuple(sorted(n for n in differing if EDIT.fullmatch(n) or (n.endswith(".squashfs") and n in both)))


def describe(found: Difference, verbose: bool = False) -> str:
    """The text that `capsulekit diff` prints; ``verbose`` names every path."""
    heads = [f"{file}: {name}" for file, name in zip(found.files, found.names, strict=True)]
    warned = [f"NOT VERIFIED: {reason}" for reason in found.unverified]
    if found.same:
        return "\n".join([*heads, *warned, "no difference"])
    blocks = ["\n".join([*heads, *warned]), *_inputs(found), _paths(found, verbose), _bytes(found, verbose)]
    return "\n\n".join(block for block in blocks if block)


def _inputs(found: Difference) -> Iterator[str]:
    if found.settings:
        rows = [(name, was, now) for name, (was, now) in found.settings.items()]
        yield table([("Setting", 24), ("First", 32), ("Second", 32)], rows)
    if found.packages:
        packages = [(p.name, p.part, p.before or "-", p.after or "-") for p in found.packages]
        yield table([("Package", 32), ("Part", 8), ("First", 32), ("Second", 32)], packages)
    if found.recipe:
        yield table([("Recipe", 48), ("", 8)], [(escape(owner), how) for owner, how in found.recipe.items()])


def _paths(found: Difference, verbose: bool) -> str:
    changes = [change for group in found.causes for change in group.changes]
    if not changes:
        words = "every path, content, mode and owner is the same"
        if found.silent:
            words += f"; the bytes of {', '.join(found.silent)} differ (how they were packed, or extended attributes)"
        return f"{words}; members that differ: {', '.join(found.members)}"
    added = sum(change.what == (ADDED,) for change in changes)
    removed = sum(change.what == (REMOVED,) for change in changes)
    lines = [f"{len(changes)} paths differ: {added} added, {removed} removed, {len(changes) - added - removed} changed"]
    for group in found.causes:
        lines.append(f"{len(group.changes):6} {group.grown:+13} bytes  {escape(group.cause)}")
        shown = group.changes if verbose else group.changes[:SHOWN]
        lines += [f"{'':28} /{escape(change.path)}: {', '.join(change.what)}" for change in shown]
        if len(shown) < len(group.changes):
            lines.append(f"{'':28} … and {len(group.changes) - len(shown)} more (-v names them)")
    return "\n".join(lines)


def _bytes(found: Difference, verbose: bool) -> str:
    rows = [(name, str(a), str(b), f"{b - a:+}") for name, (a, b) in found.sizes.items() if a != b]
    packages = list(found.unpacked.items())
    shown = packages if verbose else packages[:SHOWN]
    rows += [(f"unpacked: {name}", str(a), str(b), f"{b - a:+}") for name, (a, b) in shown]
    columns = [("Size in bytes", 40), ("First", 14), ("Second", 14), ("Change", 14)]
    return table(columns, rows) if rows else ""


def as_json(found: Difference) -> dict[str, Any]:
    """The same for programs, with every path; those that are no UTF-8 are percent-escaped."""
    causes = [
        {
            "cause": escape(group.cause),
            "grown": group.grown,
            "paths": [{"path": f"/{escape(c.path)}", "what": list(c.what), "grown": c.grown} for c in group.changes],
        }
        for group in found.causes
    ]
    return {**asdict(found), "same": found.same, "causes": causes}
