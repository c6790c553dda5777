"""What each node was last told to boot: one short text a node, which provisioner/drift.py makes and reads."""

from __future__ import annotations

import json
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
        """A node was given a plan; the one before is forgotten. What a plan names stays in the store."""
        told = _told(plan)
        sql = (
            "INSERT INTO booted (nodeid, time, plan, vnfs, identity) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (nodeid) DO UPDATE SET time = excluded.time, plan = excluded.plan,"
            " vnfs = excluded.vnfs, identity = excluded.identity"
        )
        with self.db.write() as con:
            con.execute(sql, (mac, time.time() if now is None else now, plan, *told))

    def booted(self) -> dict[str, Booted]:
        """NodeID → what it was told last; only nodes that ever asked."""
        rows = self.db.each("SELECT nodeid, time, plan FROM booted")
        return {row["nodeid"]: Booted(float(row["time"]), row["plan"]) for row in rows}

    def handed_to(self, mac: str) -> tuple[str, str] | None:
        """(installed name, identity) of the capsule that a node was told to boot last, or None."""
        rows = self.db.rows("SELECT vnfs, identity FROM booted WHERE nodeid = ? AND identity <> ''", (mac,))
        return (str(rows[0]["vnfs"]), str(rows[0]["identity"])) if rows else None

    def handed_name(self, identity: str) -> str | None:
        """The installed name under which some node was last told to boot this identity, or None."""
        rows = self.db.rows("SELECT vnfs FROM booted WHERE identity = ? LIMIT 1", (identity,))
        return str(rows[0]["vnfs"]) if rows else None

    def handed_out(self) -> dict[tuple[str, str], list[str]]:
        """(installed name, identity) → names of the nodes that were told to boot it last, or were livesynced to it.

        A node that was brought to another one runs on both: its kernel and network layer are still those it booted.
        """
        rows = self.db.each(
            "SELECT b.vnfs AS vnfs, b.identity AS identity, n.hostname AS hostname,"
            " CASE WHEN b.plan LIKE ? THEN b.plan ELSE '' END AS synced FROM booted b"
            " JOIN nodes n ON n.nodeid = b.nodeid WHERE b.identity <> '' ORDER BY n.hostname",
            ('%"under":%',),
        )
        found: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            runs = [(str(row["vnfs"]), str(row["identity"])), _told(row["synced"])]
            for one in dict.fromkeys(one for one in runs if one[1]):
                found.setdefault(one, []).append(str(row["hostname"]))
        return found


def _told(plan: str) -> tuple[str, str]:
    """(installed name, identity) that an outline names; empty texts for one that names none."""
    try:
        told = json.loads(plan)
        return str(told["vnfs"]), str(told["identity"])
    except (ValueError, KeyError, TypeError):
        return "", ""
