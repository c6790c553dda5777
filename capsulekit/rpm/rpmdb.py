"""The rpm database, made the same on every machine: rpm notes when it installed what, and in which order.

Run inside a build's namespaces as ``python -m capsulekit.rpm.rpmdb ROOT DBPATH EPOCH PACKAGES``.
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.rpm.header import INSTALLTID, INSTALLTIME, Header, package_header

FILE = "rpmdb.sqlite"
# Folders that dnf makes in every root it installs into; they stay where a package brings them.
OF_DNF = ("/etc/dnf/modules.d", "/etc/dnf")
# What sqlite and rpm leave beside it while it is in use.
LEFT = ("rpmdb.sqlite-wal", "rpmdb.sqlite-shm", "rpmdb.sqlite-journal", ".rpm.lock")


def normalise(folder: Path, epoch: int) -> None:
    """Rewrite the database in ``folder``: packages by name, installed at ``epoch``, rows sorted, no free pages.

    What rpm signed is not touched: the times are no part of a package's own header. Raises CapsulekitError when the
    folder holds no rpm database of the sqlite kind.
    """
    path, fresh = folder / FILE, folder / f".{FILE}.fresh"
    if not path.is_file():
        raise CapsulekitError(f"{path} is missing: the packages were installed with another kind of rpm database")
    fresh.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(fresh, isolation_level=None)) as db:
            db.execute("ATTACH ? AS old", (str(path),))
            _rewrite(db, epoch)
            db.execute("DETACH old")
    except sqlite3.Error as error:
        raise CapsulekitError(f"{path}: the rpm database cannot be read: {error}") from None
    for name in LEFT:
        (folder / name).unlink(missing_ok=True)
    fresh.chmod(0o644)
    fresh.rename(path)


def _rewrite(db: sqlite3.Connection, epoch: int) -> None:
    """One table holds the packages, by number; one for each tag that is looked up holds (key, number, index).

    The rows are copied inside sqlite: a key may be a path that is no UTF-8.
    """
    # Without a write-ahead log in its header the file can be read where nothing can be written.
    db.execute("PRAGMA main.journal_mode = OFF")
    for pragma in ("user_version", "application_id"):
        db.execute(f"PRAGMA main.{pragma} = {db.execute(f'PRAGMA old.{pragma}').fetchone()[0]}")
    db.execute("BEGIN")
    parts = db.execute(
        "SELECT type, name, sql FROM old.sqlite_master WHERE sql IS NOT NULL ORDER BY type, name"
    ).fetchall()
    tables = {name: sql for kind, name, sql in parts if kind == "table" and not name.startswith("sqlite_")}
    for sql in tables.values():
        db.execute(sql)
    _packages(db, epoch)
    for name in sorted(set(tables) - {"Packages"}):
        db.execute(
            f'INSERT INTO main."{name}" SELECT key, new, idx FROM old."{name}" JOIN numbers ON was = hnum '  # noqa: S608
            "ORDER BY key, new, idx"
        )
    db.execute("UPDATE main.Installtid SET key = ?", (struct.pack("=I", epoch),))
    for kind, name, sql in parts:
        if kind == "index" and not name.startswith("sqlite_"):
            db.execute(sql)
    db.execute("COMMIT")


def _packages(db: sqlite3.Connection, epoch: int) -> None:
    """Copy the packages, sorted and numbered from 1; the table ``numbers`` then says which number was which."""
    names = []
    for number, blob in db.execute("SELECT hnum, blob FROM old.Packages"):
        header = Header(blob)
        names.append((header.name, header.version, header.arch, number))
    db.execute("CREATE TEMP TABLE numbers (was INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
    for new, (*_, was) in enumerate(sorted(names), 1):
        (blob,) = db.execute("SELECT blob FROM old.Packages WHERE hnum = ?", (was,)).fetchone()
        header = Header(blob).with_number(INSTALLTIME, epoch).with_number(INSTALLTID, epoch)
        db.execute("INSERT INTO main.Packages VALUES (?, ?)", (new, header.blob))
        db.execute("INSERT INTO numbers VALUES (?, ?)", (was, new))


def headers(path: Path) -> Iterator[Header]:
    """Every package of a database file, by number; raises CapsulekitError when it is none."""
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
            for (blob,) in db.execute("SELECT blob FROM Packages ORDER BY hnum"):
                yield Header(blob)
    except sqlite3.Error as error:
        raise CapsulekitError(f"{path}: not an rpm database: {error}") from None


def file_owners(path: Path) -> dict[str, str]:
    """Absolute path -> package name, as the packages spell their paths, out of a database file (rpmdb.sqlite).

    A folder of several packages belongs to the first one by name. Raises CapsulekitError.
    """
    owners: dict[str, str] = {}
    for header in headers(path):
        for file in header.paths():
            owners.setdefault(file, header.name)
    return owners


def remove_folders_of_dnf(root: Path, owners: Mapping[str, str]) -> None:
    """Remove the empty folders that dnf itself left in the root; ``owners`` as file_owners says it."""
    for name in OF_DNF:
        if name not in owners:
            with suppress(OSError):  # not there, or not empty
                (root / name.lstrip("/")).rmdir()


def check_installed(path: Path, packages: Iterable[Path]) -> None:
    """Raise CapsulekitError when one of the package files is not in the database: dnf may go on without it."""
    there = {(header.name, header.version, header.arch) for header in headers(path)}
    for package in packages:
        header = package_header(package)
        if (header.name, header.version, header.arch) not in there:
            raise CapsulekitError(f"the package {header.name} {header.version} was not installed")


def main(root: Path, dbpath: str, epoch: int, packages: Path) -> None:
    """Check that all was installed, make the database the same everywhere, tidy up; raises CapsulekitError."""
    folder = (root / dbpath.lstrip("/")).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise CapsulekitError(f"{dbpath} is a link that leads out of the root")
    normalise(folder, epoch)
    check_installed(folder / FILE, sorted(packages.glob("*.rpm")))
    remove_folders_of_dnf(root, file_owners(folder / FILE))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    except CapsulekitError as failure:
        sys.exit(f"E: {failure}")
