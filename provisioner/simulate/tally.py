"""The figures of a run, in memory that does not grow with it: counts, durations in classes, reasons of failures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

FINEST = 1e-4  # seconds
WIDTH = 1.05  # one class of durations ends where this many times its begin is: what is printed is 5 % too high at most
MOST_REASONS = 40
OTHERS = "other reasons"


@dataclass
class Durations:
    """How long something took, each time it was done. Seconds."""

    count: int = 0
    longest: float = 0.0
    _classes: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count += 1
        self.longest = max(self.longest, seconds)
        self._classes[math.ceil(math.log(max(seconds, FINEST) / FINEST, WIDTH))] += 1

    def within(self, share: float) -> float:
        """The duration that this share (0 to 1) of them stayed within; 0 when there are none."""
        left = share * self.count
        for number in sorted(self._classes):
            left -= self._classes[number]
            if left <= 1e-9:
                return min(FINEST * WIDTH**number, self.longest)
        return self.longest

    def record(self) -> dict[str, float]:
        """For programs."""
        return {
            "count": self.count,
            "p50": round(self.within(0.5), 5),
            "p99": round(self.within(0.99), 5),
            "longest": round(self.longest, 5),
        }


@dataclass
class Tally:
    """What happened so far."""

    requests: Durations = field(default_factory=Durations)
    kinds: defaultdict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    to_ready: Durations = field(default_factory=Durations)
    failures: Counter[str] = field(default_factory=Counter)
    begun: int = 0  # nodes
    ready: int = 0
    bytes: int = 0  # of answers' bodies
    limited: int = 0  # times the limit for one address said to wait
    waited: int = 0  # times a node was told to wait for its capsule, which is mounted for editing

    def request(self, kind: str, seconds: float) -> None:
        """One was answered, whatever the answer was."""
        self.requests.add(seconds)
        self.kinds[kind].add(seconds)

    def failed(self, reason: str) -> None:
        """One node ended early."""
        self.failures[reason if reason in self.failures or len(self.failures) < MOST_REASONS else OTHERS] += 1

    def record(self, nodes: int, seconds: float) -> dict[str, Any]:
        """For programs: all of it, of a run of so many nodes that took so long."""
        return {
            "nodes": nodes,
            "begun": self.begun,
            "ready": self.ready,
            "failed": self.failures.total(),
            "failures": dict(self.failures.most_common()),
            "seconds": round(seconds, 3),
            "requests": self.requests.record() | {"per_second": round(self.requests.count / seconds, 1)},
            "kinds": {kind: took.record() for kind, took in self.kinds.items()},
            "to_ready": self.to_ready.record(),
            "bytes": self.bytes,
            "limited": self.limited,
            "waited": self.waited,
        }


def lines(record: dict[str, Any]) -> list[str]:
    """The figures for people."""
    requests, to_ready = record["requests"], record["to_ready"]
    found = [
        f"Ready: {record['ready']} of {record['nodes']} pretend nodes, each after "
        f"{to_ready['p50']:.2f} s (half of them), {to_ready['p99']:.2f} s (99 %), {to_ready['longest']:.2f} s (all)",
        f"Requests: {requests['count']} in {record['seconds']:.1f} s, {requests['per_second']:.0f} a second, "
        f"{record['bytes'] / 1e6:.1f} MB",
        f"{'':<14} {'number':>9} {'p50 s':>9} {'p99 s':>9} {'longest s':>9}",
    ]
    for kind, took in (("all", requests), *record["kinds"].items()):
        found.append(f"{kind:<14} {took['count']:>9} {took['p50']:>9.3f} {took['p99']:>9.3f} {took['longest']:>9.3f}")
    if record["limited"]:
        found.append(f"Told to wait by the limit for one address: {record['limited']} times")
    if record["waited"]:
        found.append(f"Told to wait for the capsule, which is mounted for editing: {record['waited']} times")
    found += [f"Failed: {number} with {reason}" for reason, number in record["failures"].items()]
    return found
