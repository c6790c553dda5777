"""What nodes say about themselves: states, steps, and the history of both."""

from __future__ import annotations

import re
import sqlite3
import time

from capsulekit.errors import CapsulekitError
from provisioner.registry.db import Database
from provisioner.registry.model import Event

# Kept per node: some thirty boots. A node that reports without end must not fill the disk.
MOST_EVENTS = 1000
LONGEST_DETAIL = 500
# States an agent repeats while nothing changes: counted as contact, not as news.
_REPEATED = ("ready", "waiting")
_STATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Reports:
    """The part of the registry that keeps what nodes report. Times are epoch seconds of the master's clock."""

    db: Database

    def record_state(
        self,
        mac: str,
        state: str,
        ip: str,
        detail: str = "",
        *,
        seconds: float | None = None,
        mem_used_kb: int | None = None,
        now: float | None = None,
    ) -> bool:
        """A node entered ``state`` (init, waiting, handoff, ready, failed, or the site's own); False: unknown node.

        ``detail`` becomes the node's error, or its reason to wait; ``init`` clears it, and after a handover that never
        became ``ready`` says so. ``seconds`` is the node's uptime. The same "ready" or "waiting" again is contact only,
        no new event.
        """
        if not _STATE.fullmatch(state):
            raise CapsulekitError(f"{state!r} is not a provisionary state")
        now = time.time() if now is None else now
        with self.db.write() as con:
            old = con.execute("SELECT status, status_time, error FROM nodes WHERE nodeid = ?", (mac,)).fetchone()
            if old is None:
                return False
            detail = _last_boot(state, old) if state in ("init", "handoff") else _clean(detail)
            con.execute(
                "UPDATE nodes SET lastcontact = ?, ipaddr = coalesce(nullif(?, ''), ipaddr) WHERE nodeid = ?",
                (now, ip, mac),
            )
            if state in _REPEATED and (old["status"], old["error"]) == (state, detail):
                return True
            con.execute(
                "UPDATE nodes SET status = ?, status_time = ?, error = ? WHERE nodeid = ?", (state, now, detail, mac)
            )
            _append(con, mac, Event(now, "state", state=state, seconds=seconds, detail=detail, mem_used_kb=mem_used_kb))
            return True

    def record_step(
        self,
        mac: str,
        step: str,
        status: str,
        seconds: float | None = None,
        detail: str = "",
        mem_used_kb: int | None = None,
        *,
        now: float | None = None,
    ) -> bool:
        """A step's start, ok or failed, with its duration; a failed one becomes the node's status. False: unknown."""
        if status not in ("start", "ok", "failed"):
            raise CapsulekitError(f"{status!r} is not the status of a step", hint="start, ok or failed")
        now = time.time() if now is None else now
        detail = _clean(detail)
        event = Event(now, "step", "", _clean(step), status, seconds, detail, mem_used_kb)
        with self.db.write() as con:
            if not con.execute("UPDATE nodes SET lastcontact = ? WHERE nodeid = ?", (now, mac)).rowcount:
                return False
            if status == "failed":
                con.execute(
                    "UPDATE nodes SET status = 'failed', status_time = ?, error = ? WHERE nodeid = ?",
                    (now, detail or event.step, mac),
                )
            _append(con, mac, event)
            return True

    def events(self, mac: str, since: float | None = None) -> list[Event]:
        """A node's events in their order, from ``since`` on when given."""
        rows = self.db.rows(
            "SELECT time, kind, state, step, status, seconds, detail, mem_used_kb FROM events"
            " WHERE nodeid = ? AND time >= ? ORDER BY id",
            (mac, since or 0.0),
        )
        return [Event(*row) for row in rows]

    def boot_times(self, mac: str) -> dict[str, float]:
        """When the newest boot first reached each state: from the last ``init`` on, in order; {} before the first."""
        times: dict[str, float] = {}
        rows = self.db.rows(
            "SELECT state, time FROM events WHERE nodeid = ? AND kind = 'state' AND id >= (SELECT max(id) FROM events"
            " WHERE nodeid = ? AND kind = 'state' AND state = 'init') ORDER BY id",
            (mac, mac),
        )
        for row in rows:
            times.setdefault(row["state"], row["time"])
        return times


def _last_boot(state: str, old: sqlite3.Row) -> str:
    """What is known of the boot before: a node that starts over after its handover never came up (stage 2, a panic)."""
    if state == "init" and old["status"] == "handoff":
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(old["status_time"]))
        return f"handed over at {when}, but the system did not come up"
    # Kept over the next handover, until the node is ready or fails otherwise.
    return str(old["error"]) if state == "handoff" and old["status"] == "init" else ""


def _append(con: sqlite3.Connection, mac: str, event: Event) -> None:
    con.execute(
        "INSERT INTO events (nodeid, time, kind, state, step, status, seconds, detail, mem_used_kb)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (mac, *vars(event).values()),
    )
    con.execute(
        "DELETE FROM events WHERE nodeid = ? AND id <="
        " (SELECT id FROM events WHERE nodeid = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (mac, mac, MOST_EVENTS),
    )


def _clean(text: str) -> str:
    """A node's words as they may reach the admin's terminal: one line, no control characters, bounded."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:LONGEST_DETAIL]
