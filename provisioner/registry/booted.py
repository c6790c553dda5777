"""What each node was last told to boot: one short text a node, which provisioner/drift.py makes and reads."""

from __future__ import annotations

import time
from dataclasses import dataclass

from provisioner.registry.db import Database


@dataclass(frozen=True)
class Booted:
    """The newest boot plan of a node, as drift.outline gives it, and when it was handed out (epoch seconds)."""

    time: float
    plan: str


class BootedPlans:
    """The part of the registry that knows what the nodes were told to boot."""

    db: Database

    def record_booted(self, mac: str, plan: str, *, now: float | None = None) -> None:
        """A node was given a plan; the one before is forgotten."""
        sql = (
            "INSERT INTO booted (nodeid, time, plan) VALUES (?, ?, ?)"
            " ON CONFLICT (nodeid) DO UPDATE SET time = excluded.time, plan = excluded.plan"
        )
        with self.db.write() as con:
            con.execute(sql, (mac, time.time() if now is None else now, plan))

    def booted(self) -> dict[str, Booted]:
        """NodeID → what it was told last; only nodes that ever asked."""
        rows = self.db.each("SELECT nodeid, time, plan FROM booted")
        return {row["nodeid"]: Booted(float(row["time"]), row["plan"]) for row in rows}
