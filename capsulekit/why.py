"""Why a path of a capsule is as it is: the package, line of the recipe, script or normaliser's row behind it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from capsulekit.capsule import manifest
from capsulekit.capsule.inspect import inspect
from capsulekit.capsule.read import open_capsule
from capsulekit.errors import CapsulekitError
from capsulekit.image.listing import FILE, Entry
from capsulekit.metadata.owners import Cause, Owners, load_owners
from capsulekit.metadata.paths import escape, plain
from capsulekit.metadata.tree import WHITEOUT, Tree
from capsulekit.trust.minisign import PublicKey

# Members that are no path of a layer, and what they are made of.
KERNEL, INITRD = "boot/vmlinuz", "boot/initrd.img"
# A folder may have hundreds of owners: so many are shown to people.
SHOWN = 8
# "remove" rows take a path away, "regenerate" rows one that was not made again.
GONE = ("remove", "regenerate")


@dataclass(frozen=True)
class Why:
    """The answer. ``path`` is the real one behind ``asked``; ``member`` of the capsule holds it ("": none does).

    ``what`` describes it (type, mode, owner, bytes). ``causes`` are in order, the last word first. Only if ``verified``
    is it more than what the file says; else ``reason`` says why not.
    """

    asked: str
    path: str
    member: str
    what: str
    causes: tuple[Cause, ...]
    verified: bool
    reason: str


def why(capsule: Path, path: str, keys: Iterable[PublicKey], *, revoked: Collection[PublicKey] = ()) -> Why:
    """Ask a capsule file for the owners of a path (absolute, links on the way to it followed).

    Raises CapsulekitError, with near names, when the capsule has nothing there and no row removes it; TrustError for a
    malformed file or one that a known key signed and that does not hold.
    """
    seen = inspect(capsule, keys, revoked=revoked)
    owners = _owners(capsule, seen.identity)
    real = owners.tree.real(plain(path))
    member, what, causes = _answer(owners, real)
    if not member and not causes:
        raise _unknown(capsule, owners.tree, real)
    return Why(f"/{plain(path)}", f"/{real}", member, what, causes, seen.verified, seen.reason)


def owner_of(capsule: Path, path: str) -> str:
    """What had the last word on a path, such as "script 50-motd" or "package coreutils"; "" when nobody is known.

    The capsule is believed: verify it before. Many paths of one capsule may be asked for.
    """
    with open_capsule(capsule) as opened:
        identity = opened.sums().hex()
    causes = _owners(capsule, identity).of(plain(path))
    return str(causes[0]) if causes else ""


@lru_cache(maxsize=2)
def _owners(capsule: Path, identity: str) -> Owners:
    """The ledgers of a file; ``identity`` tells two contents of one name apart."""
    del identity
    with open_capsule(capsule) as opened:
        return load_owners(opened, manifest.loads(opened.read_member(manifest.MEMBER)))


def _answer(owners: Owners, path: str) -> tuple[str, str, tuple[Cause, ...]]:
    """(member, description, causes) of a real path."""
    if path == KERNEL:
        return KERNEL, "the kernel that a node starts", tuple(owners.kernel())
    if path == INITRD:
        return INITRD, "stage 2: a small init, its programs, and the kernel's modules", tuple(owners.stage2())
    found = owners.tree.find(path)
    if found and (found[1].kind, found[1].target) != WHITEOUT:
        return found[0], _what(found[1]), owners.of(path)
    if found:
        return "", f"removed by {found[0]}", owners.of(path)
    rows = [row for row in owners.rules.matching(path) if row.action in GONE]
    listed = [owners.package(name) for name in owners.packages.get(path, ())]
    removed = [Cause("normaliser", f"/{row.glob}", f"{row.action}: {row.why}") for row in rows[:1]]
    gone = "removed by the normaliser" if rows else "removed after its package was installed"
    return "", gone, (*removed, *listed)


def _what(entry: Entry) -> str:
    size = f", {entry.size} bytes" if entry.kind == FILE else ""
    target = f" to {escape(entry.target)}" if entry.target else ""
    hard = f", the same file as /{escape(entry.hard)}" if entry.hard else ""
    return f"{entry.kind}{target}, mode {entry.mode:04o}, owner {entry.uid}:{entry.gid}{size}{hard}"


def _unknown(capsule: Path, tree: Tree, path: str) -> CapsulekitError:
    return CapsulekitError(f"{capsule}: there is no /{escape(path)} in this capsule", hint=_near(tree, path))


def _near(tree: Tree, path: str) -> str | None:
    """Names that may have been meant: alike in the same folder, else the same name elsewhere."""
    folder, _, name = path.rpartition("/")
    every = [known for _, known, _ in tree.paths()]
    beside = {known.rpartition("/")[2]: known for known in every if known.rpartition("/")[0] == folder}
    close = [beside[n] for n in difflib.get_close_matches(name, sorted(beside), n=3, cutoff=0.5)]
    same = sorted(known for known in every if known.rpartition("/")[2] == name)[:3]
    found = [f"/{escape(one)}" for one in (*close, *(s for s in same if s not in close))][:4]
    return "did you mean " + " or ".join(found) + "?" if found else None


def describe(answer: Why) -> str:
    """The text that `capsulekit why` prints."""
    alias = f" (asked for as {escape(answer.asked)})" if answer.asked != answer.path else ""
    where = f"in {answer.member}" if answer.member else "NOT in the capsule"
    lines = [f"{escape(answer.path)}{alias}", f"  {where}: {answer.what}"]
    for cause in answer.causes[:SHOWN]:
        detail = f": {cause.detail}" if cause.kind in ("normaliser", "install", "build") else f" {cause.detail}"
        lines.append(f"  {escape(str(cause))}{detail if cause.detail else ''}")
        if cause.chain[1:]:
            lines.append("    asked for: " + " ← ".join(cause.chain))
        if cause.place:
            lines.append(f"    {escape(cause.place)}")
    if len(answer.causes) > SHOWN:
        lines.append(f"  … and {len(answer.causes) - SHOWN} more (--json names them)")
    if not answer.causes:
        lines.append("  nothing in the capsule says who put it there")
    if not answer.verified:
        lines.append(f"NOT VERIFIED: {answer.reason}; all of this is only what the file says")
    return "\n".join(lines)


def as_json(answer: Why) -> dict[str, Any]:
    """The same for programs; paths that are no UTF-8 are percent-escaped."""
    return {
        "asked": escape(answer.asked),
        "path": escape(answer.path),
        "present": bool(answer.member),
        "member": answer.member,
        "what": answer.what,
        "causes": [{**asdict(cause), "name": escape(cause.name)} for cause in answer.causes],
        "verified": answer.verified,
        "reason": answer.reason,
    }
