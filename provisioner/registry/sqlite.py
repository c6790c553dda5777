"""The registry in a file: SQLite by the standard library, WAL, immediate transactions, on a local disk only."""

from __future__ import annotations

import os
import re
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.registry.db import BUSY_SECONDS, Database, Session

# WAL needs shared memory between the processes and locks that hold: https://sqlite.org/wal.html, "All processes
# using a database must be on the same host computer".
_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "gpfs", "gfs", "gfs2", "ocfs2",
    "orangefs", "coda", "ncpfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.davfs",
    "fuse.juicefs", "fuse.beegfs",
}  # fmt: skip


class _Connection(Session):
    """A connection to the file."""

    def __init__(self, path: Path) -> None:
        # isolation_level=None: BEGIN and COMMIT are ours alone. The threads never share a connection, only close()
        # touches those of others.
        self.raw = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self.raw.row_factory = sqlite3.Row

    @property
    def in_transaction(self) -> bool:
        return self.raw.in_transaction

    def begin(self, *, snapshot: bool = False) -> None:
        self.raw.execute("BEGIN" if snapshot else "BEGIN IMMEDIATE")

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> sqlite3.Cursor:
        return self.raw.execute(sql, values)

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> sqlite3.Cursor:
        return self.raw.executemany(sql, values)

    def each(self, sql: str, values: Sequence[Any]) -> Iterator[sqlite3.Row]:
        return iter(self.raw.execute(sql, values))

    def close(self) -> None:
        self.raw.close()


class Sqlite(Database):
    """One SQLite file."""

    def __init__(self, path: Path) -> None:
        """Open the file, made when missing. Raises CapsulekitError, also where it must not be."""
        self.path = path
        self.place = str(path)
        # So that close() finds those of all living threads.
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        refuse_network_path(path)
        super().__init__()

    def exists(self, table: str) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)))

    def _connect(self) -> Session:
        if not self.path.exists():
            _make_private(self.path)
        con = _Connection(self.path)
        self._open.add(con)
        return con

    def _sessions(self) -> list[Session]:
        return list(self._open)

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        """The change to WAL does not wait for other connections, so only one process at a time comes here."""
        # Late, like all that a plain command does not need: `node list` starts in under 0.2 s.
        from capsulekit.files import exclusive_lock

        with exclusive_lock(self.path.with_name(self.path.name + ".lock")):
            mode = self.rows("PRAGMA journal_mode = WAL")[0][0]
            if mode != "wal":
                raise CapsulekitError(f"{self.path}: SQLite's WAL does not work on this file system")
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = None
            if "locked" in str(error):
                hint = f"another process has been writing to it for {BUSY_SECONDS:.0f} s: try again"
            elif "malformed" in str(error) or "not a database" in str(error):
                hint = "move it away and run: capsulekit registry restore FILE; it was damaged or is no registry"
            raise CapsulekitError(f"registry {self.path}: {error}", hint=hint) from error


def _make_private(path: Path) -> None:
    """Make the file readable by its owner alone; SQLite gives its -wal and -shm the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise CapsulekitError(f"registry {path}: {error.strerror}") from error


def refuse_network_path(path: Path) -> None:
    """Raise CapsulekitError when ``path`` lies on a network file system."""
    kind = file_system_type(path)
    if kind in _NETWORK or kind.startswith("fuse.ceph"):
        raise CapsulekitError(
            f"the registry {path} would lie on a network file system ({kind}), where SQLite loses data",
            hint='site.toml: registry = "/var/lib/capsulekit/registry.db" on a local disk, or "postgresql://…"',
        )


def file_system_type(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kernel's name for the file system that holds ``path``: of the mount nearest above it, "" if unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        # Only line breaks and blanks are escaped in names: a user may have mounted something at "a\rb".
        lines = os.fsdecode(mounts.read_bytes()).split("\n")[:-1]
    except OSError:
        return ""
    for line in lines:
        # proc(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw"; blanks in paths are octal.
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4]
        if "\\" in point:
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
        # Later lines are mounted over earlier ones, hence >=.
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind
