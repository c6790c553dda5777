"""The history of a capsule, and the way back to what it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capsulekit.errors import CapsulekitError, TrustError, UsageError
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.vnfs.check import check_generation
from provisioner.vnfs.generation import stored, switch
from provisioner.vnfs.place import placing
from provisioner.vnfs.store import VnfsStore

# Digits alone are a number; of an identity this many are asked for.
SHORTEST = 6
_NUMBER = re.compile(r"[0-9]{1,5}")
_PREFIX = re.compile(rf"[0-9a-f]{{{SHORTEST},64}}")


@dataclass(frozen=True)
class Line:
    """A line of a history: ``current`` is what nodes boot, ``imported`` the first; ``nodes`` were told to boot it last.

    The nodes of a generation are told at its newest line.
    """

    past: Past
    current: bool
    imported: bool
    nodes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """For programs; times are epoch seconds, ``deleted`` None while it is kept."""
        past = self.past
        return {
            "number": past.number, "identity": past.identity, "parent": past.parent, "time": past.time, "who": past.who,
            "kind": past.kind, "message": past.message, "changes": dict(past.changes), "deleted": past.gone,
            "current": self.current, "imported": self.imported, "nodes": list(self.nodes),
        }  # fmt: skip


@dataclass(frozen=True)
class RolledBack:
    """What nodes boot now, and the line of history that made it; ``left`` is the identity they booted before."""

    capsule: InstalledCapsule
    to: Past
    left: str


def history(store: VnfsStore, name: str) -> tuple[Line, ...]:
    """The history of an installed capsule, oldest first. Raises CapsulekitError for an unknown one."""
    row = store.get(name)
    lines, handed = store.history(row.name), store.registry.handed_out()
    newest = {past.identity: past.number for past in lines}
    return tuple(
        Line(
            past,
            past is lines[-1],
            past is lines[0],
            tuple(handed.get((row.name, past.identity), ())) if newest[past.identity] == past.number else (),
        )
        for past in lines
    )


def changed(changes: Mapping[str, Any], most: int) -> str:
    """ "+htop 3.2.2, bash 5.1 → 5.2; paths: 3 added, 1 changed" of a summary, with at most so many packages."""
    packages = changes.get("packages", {})
    told = [f"+{name} {version}" for name, version in packages.get("added", {}).items()]
    told += [f"{name} {old} → {new}" for name, (old, new) in packages.get("changed", {}).items()]
    told += [f"-{name} {version}" for name, version in packages.get("removed", {}).items()]
    more = [f"{len(told) - most} more packages"] if len(told) > most else []
    paths = [f"{count} {word}" for word, count in changes.get("paths", {}).items() if count]
    return "; ".join(filter(None, (", ".join(told[:most] + more), f"paths: {', '.join(paths)}" if paths else "")))


def find_generation(store: VnfsStore, name: str, wanted: str) -> Past:
    """The generation of a capsule that a number of its history, or the beginning of its identity, means: newest line.

    Raises UsageError for a word that is neither, CapsulekitError for one that means none, several, or a deleted one.
    """
    lines = store.history(name)
    text = wanted.strip().lower().removesuffix("…")
    if _NUMBER.fullmatch(text):
        found = {past.identity for past in lines if past.number == int(text)}
    elif _PREFIX.fullmatch(text):
        found = {past.identity for past in lines if past.identity.startswith(text)}
    else:
        raise UsageError(
            f"{wanted[:80]!r} names no generation", hint=f"its number, or {SHORTEST} or more digits of its identity"
        )
    see = f"see: capsulekit vnfs history {name}"
    if len(found) != 1:
        raise CapsulekitError(f"{name} has {'several generations' if found else 'no generation'} {text}", hint=see)
    past = next(past for past in reversed(lines) if past.identity in found)
    if past.gone is not None:
        raise CapsulekitError(f"generation {text} of {name} was deleted", hint=see)
    return past


def rollback(store: VnfsStore, name: str, to: str = "", *, message: str = "", dry_run: bool = False) -> RolledBack:
    """Let nodes boot an older (or newer) generation from their next boot on; "" is what the current one was made from.

    All of it is checked first. Raises TrustError when it is not what was signed, or by nobody who is trusted now,
    CapsulekitError when it is gone, is what nodes boot already, or somebody else changed the capsule meanwhile.
    """
    row = store.get(name)
    with store.lock():
        row = store.get(row.name)
        past = find_generation(store, row.name, to) if to else _made_from(store, row)
        if past.identity == row.identity:
            raise CapsulekitError(
                f"{row.name} is at generation {past.number} already", hint=f"see: capsulekit vnfs history {row.name}"
            )
        wrong = check_generation(store, row, past.identity)
        if wrong:
            raise TrustError(
                f"generation {past.number} of {row.name} can't be booted: {wrong[0]}",
                hint="go back to another one: --to NUMBER",
                details=tuple(wrong[1:]),
            )
        made = stored(store, row, past.identity).row
        if not dry_run:
            with placing(store, f"roll {row.name} back"):
                switch(store, made, base=row.identity, kind="rollback", message=message)
    return RolledBack(made, past, row.identity)


def _made_from(store: VnfsStore, row: InstalledCapsule) -> Past:
    """The generation that the current one was made from, whatever was gone back to since."""
    lines = store.history(row.name)
    making = next((past for past in lines if past.identity == row.identity and past.kind != "rollback"), lines[0])
    if not making.parent or making.parent == row.identity:
        raise CapsulekitError(f"{row.name} is as it was imported: there is nothing to go back to")
    try:
        return find_generation(store, row.name, making.parent)
    except CapsulekitError as wrong:
        raise CapsulekitError(
            f"what generation {making.number} of {row.name} was made from was deleted",
            hint=f"name another one, --to NUMBER; see: capsulekit vnfs history {row.name}",
        ) from wrong
