"""What nodes say about themselves: states, steps, and the history of both."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence

from capsulekit.errors import CapsulekitError
from provisioner.registry.history import History
from provisioner.registry.model import Event
from provisioner.registry.sql import CHUNK, Connection, Row, chunks

# Kept per node: some thirty boots. A node that reports without end must not fill the disk.
MOST_EVENTS = 1000
LONGEST_DETAIL = 500
# States an agent repeats while nothing changes: counted as contact, not as news.
_REPEATED = ("ready", "waiting", "failed")
_STATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Reports(History):
    """The part of the registry that keeps what nodes report. Times are epoch seconds of the master's clock."""

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
            self._append(
                con, mac, Event(now, "state", state=state, seconds=seconds, detail=detail, mem_used_kb=mem_used_kb)
            )
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
            self._append(con, mac, event)
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
        return self.all_boot_times([mac]).get(mac, {})

    def all_boot_times(self, macs: Sequence[str]) -> dict[str, dict[str, float]]:
        """NodeID → the same, of those of some nodes that ever booted; others may be in it too."""
        # Two plain queries: neither database then has a join to plan badly. Each node's last init is looked for from
        # its newest event back, so what older boots said is not read.
        last = (
            "(SELECT i.id FROM events i WHERE i.nodeid = nodes.nodeid AND i.kind = 'state' AND i.state = 'init'"
            " ORDER BY i.id DESC LIMIT 1)"
        )
        found: dict[str, dict[str, float]] = {}
        for where, some in _some_of(macs):
            rows = self.db.rows(f"SELECT nodeid, {last} AS first FROM nodes WHERE {where}", some)  # noqa: S608
            first = {row["nodeid"]: int(row["first"]) for row in rows if row["first"] is not None}
            sql = f"SELECT id, nodeid, state, time FROM events WHERE kind = 'state' AND id >= ? AND {where} ORDER BY id"  # noqa: S608
            for row in self.db.each(sql, (min(first.values()), *some)) if first else ():
                if row["id"] >= first.get(row["nodeid"], math.inf):
                    found.setdefault(row["nodeid"], {}).setdefault(row["state"], row["time"])
        return found

    def _append(self, con: Connection, mac: str, event: Event) -> None:
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
        self._prune(con, "events", 1, event.time)


def _some_of(macs: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(condition, its values) for some nodes; for many it is one condition, which holds for all nodes."""
    if len(macs) > CHUNK:
        yield "1 = 1", []
    else:
        yield from ((f"nodeid IN ({marks})", some) for marks, some in chunks(macs))


def _last_boot(state: str, old: Row) -> str:
    """What is known of the boot before: a node that starts over after its handover never came up (stage 2, a panic)."""
    if state == "init" and old["status"] == "handoff":
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(old["status_time"]))
        return f"handed over at {when}, but the system did not come up"
    # Kept over the next handover, until the node is ready or fails otherwise.
    return str(old["error"]) if state == "handoff" and old["status"] == "init" else ""


def _clean(text: str) -> str:
    """A node's words as they may reach the admin's terminal: one line, no control characters, bounded."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:LONGEST_DETAIL]
