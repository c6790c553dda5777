"""The registry's database, as far as both drivers agree: one writer at a time, migrations by number.

Statements are plain SQL of the subset that SQLite and PostgreSQL share, values marked by ``?``. A migration is a
script in migrations/; it says INTEGER PRIMARY KEY, INTEGER, REAL and TEXT, and each driver has its own words for them.
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from capsulekit.errors import CapsulekitError
from provisioner.registry.sql import Connection, Row

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 60.0
_Result = TypeVar("_Result")


class Session(Connection, ABC):
    """One thread's connection, which commits each statement unless a transaction was begun."""

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @abstractmethod
    def begin(self, *, snapshot: bool = False) -> None:
        """Begin a transaction as the only writer, or one that only reads and sees one moment."""

    @abstractmethod
    def each(self, sql: str, values: Sequence[Any]) -> Iterator[Row]:
        """A query's rows one by one; other statements may come in between."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""


class Database(ABC):
    """One registry's database. Safe to share between threads: each gets a connection of its own."""

    place: str  # for messages
    # Told "registry-lost" (place, reason) and "registry-back" (place): a server's log. Commands say what failed anyway.
    log: Callable[..., None] = staticmethod(lambda _event, **_fields: None)

    def __init__(self) -> None:
        """Open the database and bring its schema up to date. Raises CapsulekitError."""
        self._local = threading.local()
        # Both databases' own waiting is less fair than a lock, and dearer: among our threads a lock comes first.
        self._writing = threading.RLock()
        with self._explained():
            if self.version() != len(migrations()):
                with self._preparing():
                    self._migrate()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Every row a query gives."""
        with self._explained():
            return self._try(lambda con: con.execute(sql, values).fetchall())

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows a query gives, one by one, all as of the moment it began."""
        with self._explained():
            yield from self._try(lambda con: con.each(sql, values))

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction of the only writer: all of the block's statements hold, or, when it raises, none."""
        with self._writing, self._explained():
            con = self.session()
            nested = self._held()  # inside a rehearsal, or another write
            if nested and not con.in_transaction:
                raise CapsulekitError(f"registry {self.place}: the change was cut off", hint="try again")
            if nested:
                con.execute("SAVEPOINT nested")
            else:
                con = self._try(_begin)
            try:
                with self._holding():
                    yield con
                con.execute("RELEASE nested" if nested else "COMMIT")
            except BaseException:
                # SQLite itself has rolled back after a full disk or an I/O error, PostgreSQL when it lost us.
                if con.in_transaction:
                    con.execute("ROLLBACK TO nested" if nested else "ROLLBACK")
                raise

    @contextmanager
    def rehearsal(self, really: bool = True) -> Iterator[None]:
        """What this thread writes inside the block is undone at its end: the checks of a change without the change.

        ``really`` False makes the block an ordinary one.
        """
        if not really:
            yield
            return
        with self._writing, self._explained():
            con = self._try(_begin)
            try:
                with self._holding():
                    yield
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that this thread reads inside the block is as of one moment; others go on writing."""
        with self._explained():
            con = self._try(_begin_snapshot)
            try:
                with self._holding():
                    yield
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")

    def version(self) -> int:
        """The number of the schema the database has; raises CapsulekitError when it is newer than we are."""
        # Empty while another process is between making the table and finishing the first migration.
        known = self._has_versions() and self.rows("SELECT coalesce(max(version), 0) FROM schema_version")[0][0]
        version = int(known or 0)
        if version > len(migrations()):
            raise CapsulekitError(
                f"{self.place} has schema {version}, this capsulekit knows {len(migrations())}",
                hint="it was written by a newer capsulekit: use that one",
            )
        return version

    def migrate(self, con: Connection, first: int, last: int) -> None:
        """Within a transaction: run the migrations of these numbers, each with its line in schema_version."""
        for number in range(first, last + 1):
            for statement in statements(migrations()[number - 1].read_text(encoding="utf-8")):
                con.execute(self.dialect(statement))
            con.execute("INSERT INTO schema_version (version, applied) VALUES (?, ?)", (number, time.time()))

    def close(self) -> None:
        """Close the connections of all threads."""
        for con in self._sessions():
            con.close()
        self._local = threading.local()

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """While this thread has a transaction: should that end early, nothing may go on outside of it."""
        before = self._held()
        self._local.held = True
        try:
            yield
        finally:
            self._local.held = before

    def _held(self) -> bool:
        held: bool = getattr(self._local, "held", False)
        return held

    def session(self) -> Session:
        """This thread's connection."""
        con: Session | None = getattr(self._local, "con", None)
        if con is None:
            con = self._local.con = self._connect()
        return con

    def dialect(self, statement: str) -> str:
        """A statement of a migration in the driver's words."""
        return statement

    @abstractmethod
    def exists(self, table: str) -> bool:
        """Whether there is such a table."""

    def number_on(self, con: Connection, table: str) -> None:  # noqa: B027 - SQLite has nothing to do
        """After rows with ids were put into a table: let new ones be counted from the highest on."""

    @abstractmethod
    def _connect(self) -> Session: ...

    @abstractmethod
    def _sessions(self) -> list[Session]:
        """The connections of all living threads."""

    @abstractmethod
    def _explained(self) -> AbstractContextManager[None]:
        """Turn the driver's own errors into ours."""

    def _try(self, work: Callable[[Session], _Result]) -> _Result:
        """Do something that can be done again, should the connection turn out to be gone."""
        return work(self.session())

    def _preparing(self) -> AbstractContextManager[None]:
        """What has to be held while the schema is made."""
        return nullcontext()

    def _has_versions(self) -> bool:
        return self.exists("schema_version")

    def _migrate(self) -> None:
        """Run the migrations that are missing, each in one transaction; other processes may be at it too."""
        with self.write() as con:
            columns = "version INTEGER PRIMARY KEY, applied REAL NOT NULL"
            con.execute(self.dialect(f"CREATE TABLE IF NOT EXISTS schema_version ({columns})"))
        for number in range(1, len(migrations()) + 1):
            with self.write() as con:
                if self.version() < number:
                    self.migrate(con, number, number)


def open_database(place: Path | str) -> Database:
    """The database at a path (SQLite, made when missing) or a postgresql:// address. Raises CapsulekitError."""
    # One of the two: the other's module is not needed.
    if isinstance(place, Path):
        from provisioner.registry.sqlite import Sqlite

        return Sqlite(place)
    from provisioner.registry.postgres import Postgres

    return Postgres(place)


def check_place(place: Path | str) -> None:
    """Raise CapsulekitError where a registry must not be: on a network file system, behind a URL with a password."""
    if isinstance(place, Path):
        from provisioner.registry.sqlite import refuse_network_path

        refuse_network_path(place)
    else:
        from provisioner.registry.address import check_address

        check_address(place)


def migrations() -> list[Path]:
    """The numbered scripts in their order; number N is the N-th."""
    return sorted(MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))


def tables(version: int) -> list[str]:
    """The tables of a schema, in the order in which they were made, without schema_version."""
    # Compiled here: only backups ask.
    made = re.compile(r'\b(?:CREATE TABLE|(DROP) TABLE|ALTER TABLE) "?(\w+)"?(?: RENAME TO "?(\w+)"?)?')
    found: list[str] = []
    for script in migrations()[:version]:
        for drop, name, new in made.findall(script.read_text(encoding="utf-8")):
            if name in found and (drop or new):
                found.remove(name)
            if not drop and (new or name) not in found:
                found.append(new or name)
    return found


def statements(script: str) -> Iterator[str]:
    """The statements of a migration one by one: lines up to one that ends in a semicolon."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line if not line.startswith("--") else ""
        if line.rstrip().endswith(";"):
            yield pending.rstrip().removesuffix(";")
            pending = ""


def _begin(con: Session) -> Session:
    con.begin()
    return con


def _begin_snapshot(con: Session) -> Session:
    con.begin(snapshot=True)
    return con
