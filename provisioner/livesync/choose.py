"""What a livesync does about each difference of a node: sends it, removes it, or leaves it alone, and why. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from provisioner.livesync.skip import KERNEL, fits, pattern
from provisioner.trees.compare import Difference, Lookup
from provisioner.trees.entry import FOLDER, key_of

# Why a difference stays, in the order in which they are told.
LEFT = ("skipped", "module", "hybrid", "kernel", "undeleted", "own")
_KERNEL = pattern(KERNEL)


@dataclass(frozen=True)
class Rules:
    """What holds for one livesync. ``last`` is the generation that an earlier one brought the node to, if any.

    ``written`` are the paths (escaped) that the node's modules write while it runs.
    """

    skip: re.Pattern[str]
    under: Lookup
    last: Lookup | None
    hybrid: Lookup | None
    delete: bool
    written: frozenset[str] = frozenset()

    def decide(self, found: Difference) -> str:
        """ "send", "remove", or a word of LEFT."""
        if found.module or found.path in self.written:
            return "module"
        if fits(_KERNEL, found.path):
            return "kernel"
        if fits(self.skip, found.path):
            return "skipped"
        if found.wants is not None:
            # A folder has to be gone first, with all that is in it.
            blocked = found.has is not None and found.has.kind == FOLDER and found.wants.kind != FOLDER
            return "undeleted" if blocked and not self.delete else "send"
        if self.hybrid is not None and self.hybrid.get(found.path):
            return "hybrid"
        was = found.under is not None or (self.last is not None and self.last.get(found.path) is not None)
        if not was:
            return "own"
        return "remove" if self.delete else "undeleted"


@dataclass
class Work:
    """What is to be done on one node: paths (escaped), in order. ``edited`` are those of them changed on the node."""

    send: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    undeleted: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether the node is as it should be."""
        return not (self.send or self.remove)


def work_of(differences: Iterable[Difference], rules: Rules) -> Work:
    """Sort a node's differences, which come in order. A folder in which something stays is left too, as its own."""
    work, stays = Work(), list[str]()
    for found in differences:
        word = rules.decide(found)
        if word == "send":
            work.send.append(found.path)
        elif word == "remove":
            work.remove.append(found.path)
        else:
            work.left[word] += 1
            if word == "undeleted":
                work.undeleted.append(found.path)
            if found.has is not None:
                stays.append(key_of(found.path))
        if found.edited and word in ("send", "remove"):
            work.edited.append(found.path)
    kept = {path for path in work.remove if _holds(stays, path)}
    work.remove = [path for path in work.remove if path not in kept]
    if kept:
        work.left["own"] += len(kept)
    return work


def _holds(stays: list[str], path: str) -> bool:
    """Whether one of these sorted paths (as keys) is in a folder."""
    first = key_of(path) + key_of("/")
    at = bisect_left(stays, first)
    return at < len(stays) and stays[at].startswith(first)
