"""What each capsule has been: its history, appended in the transaction that changes what nodes boot."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.registry.db import Database
from provisioner.registry.history import Actor
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.registry.sql import Connection

COLUMNS = ", ".join(f.name for f in fields(InstalledCapsule))
_PAST = ", ".join(f.name for f in fields(Past))


class Generations:
    """The part of the registry that knows what capsules were made from, when and by whom."""

    db: Database
    actor: Actor = Actor()

    def generations(self, name: str) -> list[Past]:
        """The history of a capsule, oldest first; none for one installed before there was a history."""
        rows = self.db.rows(f"SELECT {_PAST} FROM generations WHERE capsule = ? ORDER BY number", (name,))  # noqa: S608
        return [_past(row) for row in rows]

    def has_generation(self, name: str, identity: str) -> bool:
        """Whether it is what nodes boot as ``name``, or in its history; transactions under way are waited for.

        Also one of our own, on a PostgreSQL connection that was lost while it was committed.
        """
        with self.db.write() as con:
            sql = "SELECT 1 FROM capsules WHERE name = ? AND identity = ?"
            past = "SELECT 1 FROM generations WHERE capsule = ? AND identity = ?"
            return any(con.execute(text, (name, identity)).fetchone() for text in (sql, past))

    def all_generations(self) -> dict[str, list[Past]]:
        """The histories of all capsules by name, asked for at once."""
        found: dict[str, list[Past]] = {}
        for row in self.db.each(f"SELECT {_PAST} FROM generations ORDER BY capsule, number"):  # noqa: S608
            found.setdefault(str(row["capsule"]), []).append(_past(row))
        return found

    def install_capsule(self, capsule: InstalledCapsule, history: Sequence[Past]) -> None:
        """Record a capsule under a name that is free, with its history, whose last line is of the capsule's identity.

        Who and when are filled in where a line does not say. Raises CapsulekitError when the name is taken.
        """
        with self.db.write() as con:
            if con.execute("SELECT 1 FROM capsules WHERE name = ?", (capsule.name,)).fetchone():
                raise CapsulekitError(f"a capsule is installed as {capsule.name} already", hint="choose another name")
            con.execute("DELETE FROM generations WHERE capsule = ?", (capsule.name,))
            put_capsule(con, capsule)
            for past in history:
                self.append_past(con, capsule.name, past)

    def switch_capsule(self, capsule: InstalledCapsule, past: Past, *, base: str, first: Sequence[Past] = ()) -> None:
        """Let nodes boot another generation from their next boot on: the capsule's row and its line of history at once.

        ``first`` are the lines before it, for a capsule that has no history yet. Raises CapsulekitError when ``base``
        (an identity) is not what nodes boot any more, or the capsule was deleted.
        """
        with self.db.write() as con:
            row = con.execute("SELECT identity FROM capsules WHERE name = ?", (capsule.name,)).fetchone()
            if row is None:
                raise CapsulekitError(f"{capsule.name} was deleted meanwhile", hint="see: capsulekit vnfs list")
            if row["identity"] != base:
                sql = f"SELECT {_PAST} FROM generations WHERE capsule = ? ORDER BY number DESC LIMIT 1"  # noqa: S608
                last = con.execute(sql, (capsule.name,)).fetchone()
                raise changed_meanwhile(capsule.name, _past(last) if last else None)
            self._begin_history(con, capsule.name, first)
            put_capsule(con, capsule)
            self.append_past(con, capsule.name, past)

    def forget_generations(self, name: str, identities: Sequence[str], first: Sequence[Past] = ()) -> None:
        """Mark generations as gone, all or none. Raises CapsulekitError for what nodes boot, or what was imported."""
        with self.db.write() as con:
            self._begin_history(con, name, first)
            current = con.execute("SELECT identity FROM capsules WHERE name = ?", (name,)).fetchone()
            oldest = con.execute(
                "SELECT identity FROM generations WHERE capsule = ? ORDER BY number LIMIT 1", (name,)
            ).fetchone()
            for identity in identities:
                for row, what in ((current, "what nodes boot"), (oldest, "what was imported")):
                    if row is None or row["identity"] == identity:
                        raise CapsulekitError(f"generation {identity[:16]}… of {name} is {what}: it stays")
                con.execute(
                    "UPDATE generations SET gone = ? WHERE capsule = ? AND identity = ? AND gone IS NULL",
                    (time.time(), name, identity),
                )

    def _begin_history(self, con: Connection, name: str, first: Sequence[Past]) -> None:
        """Within a transaction: the lines of a capsule that has none."""
        if not con.execute("SELECT 1 FROM generations WHERE capsule = ? LIMIT 1", (name,)).fetchone():
            for past in first:
                self.append_past(con, name, past)

    def append_past(self, con: Connection, name: str, past: Past) -> None:
        """Within a transaction: one line more; a generation that was gone and is made again is there again."""
        sql = "SELECT coalesce(max(number), 0) + 1 FROM generations WHERE capsule = ?"
        number = int(con.execute(sql, (name,)).fetchone()[0])
        con.execute("UPDATE generations SET gone = NULL WHERE capsule = ? AND identity = ?", (name, past.identity))
        who, when = past.who or self.actor.who, past.time or time.time()
        line = asdict(replace(past, capsule=name, number=number, who=who, time=when, gone=None))
        line["changes"] = json.dumps(line["changes"], sort_keys=True, separators=(",", ":"))
        marks = ", ".join("?" * len(line))
        con.execute(f"INSERT INTO generations ({_PAST}) VALUES ({marks})", tuple(line.values()))  # noqa: S608


def put_capsule(con: Connection, capsule: InstalledCapsule) -> None:
    """Within a transaction: the capsule's row; that of the same name, if any, is replaced."""
    values = asdict(capsule)
    news = ", ".join(f"{name} = excluded.{name}" for name in values)
    marks = ", ".join("?" * len(values))
    con.execute(
        f"INSERT INTO capsules ({COLUMNS}) VALUES ({marks}) ON CONFLICT (name) DO UPDATE SET {news}",  # noqa: S608
        tuple(values.values()),
    )


def changed_meanwhile(name: str, last: Past | None) -> CapsulekitError:
    """What to raise when a capsule is not what it was; ``last`` is the newest line of its history."""
    by = ""
    if last is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(last.time))
        by = f" by {last.who or 'somebody'} ({last.kind}, {when} UTC)"
    return CapsulekitError(f"{name} was changed meanwhile{by}", hint=f"see: capsulekit vnfs history {name}")


def _past(row: Any) -> Past:
    try:
        changes = json.loads(row["changes"])
    except ValueError:
        changes = {}
    return Past(**{**row, "changes": changes if isinstance(changes, dict) else {}})
