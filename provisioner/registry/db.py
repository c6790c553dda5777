"""The registry's file: plain sqlite3, WAL, one immediate transaction per write, numbered migrations."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 60.0
# WAL needs shared memory between the processes and locks that hold: https://sqlite.org/wal.html, "All processes
# using a database must be on the same host computer".
_NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|9p|afs|ceph|lustre|beegfs|gpfs|gfs2?|ocfs2|orangefs|coda|ncpfs"
    r"|fuse\.(sshfs|glusterfs|ceph.*|s3fs|rclone|davfs|juicefs|beegfs)"
)


class _Connection(sqlite3.Connection):
    """A connection that can be referred to weakly, so that close() finds those of all living threads."""


class Database:
    """One SQLite file. Safe to share between threads: each gets a connection of its own."""

    def __init__(self, path: Path) -> None:
        """Open the file, made when missing, and bring its schema up to date. Raises CapsulekitError."""
        self.path = path
        self._local = threading.local()
        # SQLite's own waiting is by sleeping and retrying; among our threads a real lock is quicker and fairer.
        self._writing = threading.RLock()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        refuse_network_path(path)
        with self._explained():
            if self._version() != len(_migrations()):
                self._migrate()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Every row a query gives."""
        with self._explained():
            return self._connection().execute(sql, values).fetchall()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[sqlite3.Row]:
        """The rows a query gives, one by one, all as of the moment it began."""
        with self._explained():
            yield from self._connection().execute(sql, values)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction: all of the block's statements hold, or, when it raises, none."""
        with self._writing, self._explained():
            con = self._connection()
            # Inside a rehearsal the transaction is open already.
            begin, commit, back = ("SAVEPOINT inner", "RELEASE inner", "ROLLBACK TO inner") if con.in_transaction else (
                "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
            )  # fmt: skip
            con.execute(begin)
            try:
                yield con
                con.execute(commit)
            except BaseException:
                # SQLite itself has rolled back after a full disk or an I/O error.
                if con.in_transaction:
                    con.execute(back)
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
            con = self._connection()
            con.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connections of all threads."""
        for con in list(self._open):
            con.close()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        con: sqlite3.Connection | None = getattr(self._local, "con", None)
        if con is None:
            if not self.path.exists():
                _make_private(self.path)
            # isolation_level=None: BEGIN and COMMIT are ours alone. The threads never share a connection, only
            # close() touches those of others.
            con = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=_Connection
            )
            con.row_factory = sqlite3.Row
            self._local.con = con
            self._open.add(con)
        return con

    def _version(self) -> int:
        con = self._connection()
        if not con.execute("SELECT count(*) FROM sqlite_master WHERE name = 'schema_version'").fetchone()[0]:
            return 0
        # Empty while another process is between making the table and finishing the first migration.
        version = int(con.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0])
        if version > len(_migrations()):
            raise CapsulekitError(
                f"{self.path} has schema {version}, this capsulekit knows {len(_migrations())}",
                hint="it was written by a newer capsulekit: use that one",
            )
        return version

    def _migrate(self) -> None:
        """Run the migrations that are missing, each in one transaction with its line in schema_version."""
        # Late, like all that a plain command does not need: `node list` starts in under 0.2 s.
        from capsulekit.files import exclusive_lock

        # The change to WAL does not wait for other connections, so only one process at a time comes here.
        with exclusive_lock(self.path.with_name(self.path.name + ".lock")):
            con = self._connection()
            mode = con.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise CapsulekitError(f"{self.path}: SQLite's WAL does not work on this file system")
            con.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied REAL NOT NULL)"
            )
            done = con.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0]
            for number, script in enumerate(_migrations()[done:], done + 1):
                con.execute("BEGIN IMMEDIATE")
                try:
                    for statement in _statements(script.read_text(encoding="utf-8")):
                        con.execute(statement)
                    con.execute("INSERT INTO schema_version VALUES (?, ?)", (number, time.time()))
                    con.execute("COMMIT")
                finally:
                    if con.in_transaction:
                        con.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's own errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            hint = None
            if "locked" in str(error):
                hint = f"another process has been writing to it for {BUSY_SECONDS:.0f} s: try again"
            elif "malformed" in str(error) or "not a database" in str(error):
                hint = "restore it from a copy; the file was damaged or is no registry"
            raise CapsulekitError(f"registry {self.path}: {error}", hint=hint) from error


def _migrations() -> list[Path]:
    """The numbered scripts in their order; number N is the N-th."""
    return sorted(MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: sqlite3's executescript would commit our transaction first."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _make_private(path: Path) -> None:
    """Make the file readable by its owner alone; SQLite gives its -wal and -shm the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise CapsulekitError(f"registry {path}: {error.strerror}") from error


def refuse_network_path(path: Path) -> None:
    """Raise CapsulekitError when ``path`` lies on a network file system."""
    kind = file_system_type(path)
    if _NETWORK.fullmatch(kind):
        raise CapsulekitError(
            f"the registry {path} would lie on a network file system ({kind}), where SQLite loses data",
            hint='put it on a local disk: registry = "/var/lib/capsulekit/registry.db" in site.toml',
        )


def file_system_type(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kernel's name for the file system that holds ``path``: of the mount nearest above it, "" if unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        # proc(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw"; blanks in paths are octal.
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split()[4])
        # Later lines are mounted over earlier ones, hence >=.
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
