"""A registry in a file, and back: also the way from SQLite to PostgreSQL, and the other way.

The file is zstd over lines of JSON, UTF-8: a heading; for each table that has rows {"table": …, "columns": […]} and one
list a row; at the end {"end": {table: rows}, "sha256": …}, the digest of all lines before. It has the schema of the
registry it is of; a restore makes that schema, fills it, and brings it up to date like any older registry.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_file
from provisioner.registry.db import Database, migrations, tables
from provisioner.registry.registry import Registry
from provisioner.registry.sql import Connection

FORMAT = 1
LONGEST_LINE = 1 << 22  # bytes; a row is a few hundred
BATCH = 1000  # rows in memory at a time


@dataclass(frozen=True)
class Contents:
    """What a backup, or a registry, holds: its schema's number, when it was made (epoch seconds), rows by table."""

    schema: int
    time: float
    rows: dict[str, int]

    def __str__(self) -> str:
        words = (("nodes", "node"), ("capsules", "capsule"), ("events", "event"), ("changes", "change"))
        counts = [(self.rows.get(table, 0), word) for table, word in words]
        return ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)


def contents(db: Database) -> Contents:
    """What a registry holds now."""
    names = tables(len(migrations()))
    with db.snapshot():
        counts = {name: int(db.rows(f'SELECT count(*) FROM "{name}"')[0][0]) for name in names}  # noqa: S608
    return Contents(len(migrations()), time.time(), counts)


def write_backup(db: Database, path: Path) -> Contents:
    """Write all of a registry as of one moment to ``path`` (0600), in one step; others go on writing to it."""
    done = Contents(len(migrations()), time.time(), {})
    packer = zstandard.ZstdCompressor(level=9, write_checksum=True, threads=1)
    digest = hashlib.sha256()
    with atomic_file(path, 0o600) as out, packer.stream_writer(out, closefd=False) as packed, db.snapshot():

        def write(value: Any) -> None:
            line = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            digest.update(line)
            packed.write(line)

        write({"capsulekit-registry": FORMAT, "schema": done.schema, "time": done.time})
        for table in tables(done.schema):
            count = 0
            for row in db.each(f'SELECT * FROM "{table}"'):  # noqa: S608 - of our own migrations
                if not count:
                    write({"table": table, "columns": list(row.keys())})
                write(list(row))
                count += 1
            if count:
                done.rows[table] = count
        write({"end": done.rows, "sha256": digest.hexdigest()})
    return done


def verify_backup(path: Path) -> Contents:
    """Read a backup to its end and say what it holds.

    Raises CapsulekitError when it is damaged, cut short, no backup, or of a newer capsulekit; OSError when unreadable.
    """
    with path.open("rb") as file:
        reader = _Reader(file, str(path))
        counts = {table: sum(1 for _ in rows) for table, _, rows in reader.tables()}
        reader.check_end(counts)
    return Contents(reader.schema, reader.time, counts)


def restore_backup(registry: Registry, path: Path) -> Contents:
    """Replace all of a registry by a backup, in one transaction: its readers see all of the old or all of the new.

    Raises as verify_backup does, and CapsulekitError when the database refuses; the registry is then as it was.
    """
    db = registry.db
    with path.open("rb") as file, db.write() as con:
        reader = _Reader(file, str(path))
        for table in reversed(tables(len(migrations()))):
            con.execute(f'DROP TABLE "{table}"')
        con.execute("DELETE FROM schema_version")
        db.migrate(con, 1, reader.schema)
        counts = {table: _fill(con, reader, table, columns, rows) for table, columns, rows in reader.tables()}
        reader.check_end(counts)
        db.migrate(con, reader.schema + 1, len(migrations()))
        for table in tables(len(migrations())):
            db.number_on(con, table)
        registry.note_restored(con, reader.time)
    return Contents(reader.schema, reader.time, counts)


def _fill(con: Connection, reader: _Reader, table: str, columns: list[str], rows: Iterator[list[Any]]) -> int:
    """Put rows into an empty table; returns how many."""
    known = {str(column[0]) for column in con.execute(f'SELECT * FROM "{table}" WHERE 1 = 0').description}  # noqa: S608
    if len(columns) != len(set(columns)) or set(columns) != known:
        raise reader.damaged(f"table {table} has other columns")
    names, marks = ", ".join(f'"{column}"' for column in columns), ", ".join("?" * len(columns))
    sql, count, batch = f'INSERT INTO "{table}" ({names}) VALUES ({marks})', 0, list[list[Any]]()  # noqa: S608
    for row in rows:
        batch.append(row)
        count += 1
        if len(batch) == BATCH:
            con.executemany(sql, batch)
            batch = []
    con.executemany(sql, batch)
    return count


class _Reader:
    """The lines of a backup, each checked for what may stand there."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._where = where
        self._digest = hashlib.sha256()
        self._digest_before = ""  # of all lines but the newest
        self._lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
        heading = self._next()
        if not isinstance(heading, dict) or "capsulekit-registry" not in heading:
            raise self.damaged("it is no backup of a registry")
        schema, written = heading.get("schema"), heading.get("time")
        if not isinstance(schema, int) or not isinstance(written, int | float) or schema < 1:
            raise self.damaged("its heading is wrong")
        if heading["capsulekit-registry"] != FORMAT or schema > len(migrations()):
            raise CapsulekitError(
                f"{where}: it is of a newer capsulekit (schema {schema}, this one knows {len(migrations())})",
                hint="restore it with that one",
            )
        self.schema, self.time = schema, float(written)
        self._known = tables(schema)
        self._ahead: Any = None
        self._width = 0
        self._end: Any = None

    def tables(self) -> Iterator[tuple[str, list[str], Iterator[list[Any]]]]:
        """Each table with its columns and rows; the rows have to be read before the next table."""
        self._ahead = self._next()
        while isinstance(self._ahead, dict) and "table" in self._ahead:
            table, columns = self._ahead["table"], self._ahead.get("columns")
            if table not in self._known or not isinstance(columns, list) or not all(type(c) is str for c in columns):
                raise self.damaged("a table's heading is wrong")
            self._known.remove(table)
            self._width = len(columns)
            yield table, columns, self._rows()
        if not isinstance(self._ahead, dict) or "end" not in self._ahead:
            raise self.damaged("a line is neither a row nor a table")
        self._end = self._ahead["end"]
        if self._ahead.get("sha256") != self._digest_before:
            raise self.damaged("its digest is that of something else")

    def check_end(self, counts: dict[str, int]) -> None:
        """Raise CapsulekitError unless that is what was written, and nothing follows."""
        if self._end != counts:
            raise self.damaged("it does not hold what it says")
        if self._line() or self._end is None:
            raise self.damaged("something follows its end")

    def damaged(self, why: str) -> CapsulekitError:
        """The error that says so."""
        return CapsulekitError(f"{self._where}: {why}", hint="take another backup; the registry was not touched")

    def _rows(self) -> Iterator[list[Any]]:
        while isinstance(row := self._next(), list):
            if len(row) != self._width or not all(value is None or type(value) in (str, int, float) for value in row):
                raise self.damaged("a row does not fit its table")
            yield row
        self._ahead = row

    def _next(self) -> Any:
        line = self._line()
        if not line:
            raise self.damaged("it is cut short")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise self.damaged("it holds a line that is no JSON") from None

    def _line(self) -> bytes:
        try:
            line = self._lines.readline(LONGEST_LINE)
        except zstandard.ZstdError as error:
            raise self.damaged(f"it is damaged or no backup ({error})") from None
        if line and not line.endswith(b"\n"):
            raise self.damaged("it is cut short or holds a line too long")
        self._digest_before = self._digest.hexdigest()
        self._digest.update(line)
        return line
