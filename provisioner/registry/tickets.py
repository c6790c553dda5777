"""Boot tickets and session keys. Callers pass sha256 digests (hex); the secrets themselves are never stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from provisioner.registry.db import Database
from provisioner.registry.sql import chunks

Refusal = Literal["unknown", "used", "expired", "mac", "address"]
# How long a dead ticket is remembered, in seconds, so that a late replay is called what it is.
REMEMBERED = 3600.0


class Tickets:
    """The part of the registry that guards the way from a boot script to a session."""

    db: Database

    def add_ticket(
        self, digest: str, mac: str, addr: str, expires: float, max_alive: int = 4, *, now: float | None = None
    ) -> None:
        """Record a ticket for a MAC and the peer address that asked. Times are epoch seconds.

        When the MAC has ``max_alive`` already, one makes way: the oldest of the same address, so that a stranger
        asking in the node's name spends his own, else the oldest.
        """
        now = time.time() if now is None else now
        with self.db.write() as con:
            con.execute("DELETE FROM tickets WHERE expires < ?", (now - REMEMBERED,))
            alive = con.execute(
                "SELECT digest FROM tickets WHERE nodeid = ? AND used = 0 AND expires > ? ORDER BY (addr = ?) DESC, id",
                (mac, now, addr),
            ).fetchall()
            for row in alive[: max(0, len(alive) - max_alive + 1)]:
                con.execute("UPDATE tickets SET expires = ? WHERE digest = ?", (now, row["digest"]))
            con.execute(
                "INSERT INTO tickets (digest, nodeid, addr, expires, used) VALUES (?, ?, ?, ?, 0)",
                (digest, mac, addr, expires),
            )

    def redeem_ticket(self, digest: str, mac: str, addr: str, now: float) -> Literal[True] | Refusal:
        """True, once, for the right MAC and address in time; otherwise why not. A refusal uses nothing up."""
        with self.db.write() as con:
            row = con.execute("SELECT nodeid, addr, expires, used FROM tickets WHERE digest = ?", (digest,)).fetchone()
            if row is None:
                return "unknown"
            if row["used"]:
                return "used"
            if row["expires"] <= now:
                return "expired"
            if row["nodeid"] != mac:
                return "mac"
            if row["addr"] != addr:
                return "address"
            con.execute("UPDATE tickets SET used = 1 WHERE digest = ?", (digest,))
            return True

    def add_session(self, digest: str, mac: str, addr: str, expires: float) -> None:
        """Record a session key of a node; its earlier ones end."""
        with self.db.write() as con:
            con.execute(
                "INSERT INTO sessions (digest, nodeid, addr, expires) VALUES (?, ?, ?, ?) ON CONFLICT (nodeid)"
                " DO UPDATE SET digest = excluded.digest, addr = excluded.addr, expires = excluded.expires",
                (digest, mac, addr, expires),
            )

    def session(self, digest: str, now: float) -> str | None:
        """The NodeID a session key belongs to, or None when it is unknown or over."""
        return self.sessions([digest], now).get(digest)

    def sessions(self, digests: Sequence[str], now: float) -> dict[str, str]:
        """Digest → NodeID of those session keys that are known and not over."""
        found: dict[str, str] = {}
        for marks, some in chunks(digests):
            sql = f"SELECT digest, nodeid FROM sessions WHERE digest IN ({marks}) AND expires > ?"  # noqa: S608 - marks
            found.update((row[0], row[1]) for row in self.db.rows(sql, (*some, now)))
        return found

    def drop_sessions(self, mac: str) -> None:
        """End every session of a node."""
        with self.db.write() as con:
            con.execute("DELETE FROM sessions WHERE nodeid = ?", (mac,))
