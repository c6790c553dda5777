"""Who changed what: one line a changed value, written in the transaction that changes it, and forgotten when old."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from provisioner.registry.db import Database
from provisioner.registry.sql import Connection

DAY = 86400.0
# How many of the oldest lines a write looks at beside one for each line it adds: history shrinks quicker than it grows,
# and no write has to pay for all that became old at once.
LOOKED_AT = 20
_COLUMNS = 'time, who, command, nodeid, hostname, "key", old, new'


@dataclass(frozen=True)
class Actor:
    """Who changes the registry: a login (or "master"), and the command he gave."""

    who: str = ""
    command: str = ""


@dataclass(frozen=True)
class Change:
    """One value that was changed; ``nodeid`` and ``hostname`` are of that moment, ``hostname`` @GROUP for a group's.

    ``key`` is a node's attribute, "added" (``new`` its name), "deleted" (``old`` its name) or "nodeid" (replaced).
    """

    time: float  # epoch seconds
    who: str
    command: str
    nodeid: str
    hostname: str
    key: str
    old: str
    new: str


class History:
    """The part of the registry that remembers changes."""

    db: Database
    actor: Actor = Actor()
    history_days: int = 365

    def changes(self, mac: str | None = None, since: float | None = None, limit: int = 1000) -> list[Change]:
        """The newest ``limit`` changes, of one node or of all, from ``since`` (epoch seconds) on; oldest first."""
        where, values = "time >= ?", [since or 0.0]
        rows = self.db.rows(
            f"SELECT {_COLUMNS} FROM changes WHERE {where}{' AND nodeid = ?' if mac else ''} ORDER BY id DESC LIMIT ?",  # noqa: S608
            (*values, *([mac] if mac else []), limit),
        )
        return [Change(*row) for row in reversed(rows)]

    def last_change(self) -> int:
        """A number that is another one as soon as somebody has changed a node; cheap to ask."""
        return int(self.db.rows("SELECT coalesce(max(id), 0) FROM changes")[0][0])

    def note_restored(self, con: Connection, made: float) -> None:
        """Within a transaction: all that is there now comes from a backup made then (epoch seconds)."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made))
        self._log(con, "restored", "", f"backup of {when}")

    def _log(self, con: Connection, key: str, old: str, new: str, *, nodeid: str = "", hostname: str = "") -> None:
        """Within a transaction: write down one change."""
        self._log_many(con, [(nodeid, hostname, key, old, new)])

    def _log_many(self, con: Connection, changes: Sequence[tuple[str, str, str, str, str]]) -> None:
        """Within a transaction: write down changes, each (nodeid, hostname, key, old, new)."""
        now = time.time()
        sql = f"INSERT INTO changes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own columns
        con.executemany(sql, [(now, self.actor.who, self.actor.command, *change) for change in changes])
        self._prune(con, "changes", len(changes), now)

    def _log_nodes(self, con: Connection, key: str, old: str, new: str, where: str, values: list[str]) -> None:
        """Within a transaction, before the change: a line for each node ``where`` names whose value is another.

        ``key``, ``old`` and ``where`` are SQL of ours: a text in quotes, an expression over ``nodes``, a condition.
        """
        now = time.time()
        done = con.execute(
            f"INSERT INTO changes ({_COLUMNS}) SELECT ?, ?, ?, nodeid, hostname, ?, {old}, ?"  # noqa: S608
            f" FROM nodes WHERE {where} AND {old} <> ? ORDER BY nodeid",
            (now, self.actor.who, self.actor.command, key, new, *values, new),
        )
        self._prune(con, "changes", done.rowcount, now)

    def _prune(self, con: Connection, table: str, added: int, now: float) -> None:
        """Forget those of the oldest lines that are older than ``history_days``; bounded by what was added."""
        con.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM (SELECT id, time FROM {table} ORDER BY id LIMIT ?)"  # noqa: S608
            " AS oldest WHERE time < ?)",
            (LOOKED_AT + 2 * added, now - self.history_days * DAY),
        )
