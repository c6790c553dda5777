"""Which packages an edit brought, took away or changed: dpkg's status file and rpm's database, before and after."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit import syscalls
from capsulekit.errors import CapsulekitError

DPKG, RPM = "dpkg", "rpm"
STATUS = b"var/lib/dpkg/status"
DATABASES = (b"var/lib/rpm/rpmdb.sqlite", b"usr/lib/sysimage/rpm/rpmdb.sqlite")
LISTS = b"var/lib/dpkg/info"


@dataclass(frozen=True, order=True)
class PackageChange:
    """A package (with ":ARCH" where it is not the only one of its name); "" for the version where it is not there."""

    name: str
    before: str
    after: str
    manager: str

    def __str__(self) -> str:
        if not self.before:
            return f"{self.name} {self.after} added"
        return f"{self.name} {self.before} → {self.after}" if self.after else f"{self.name} {self.before} removed"


def package_changes(changed: Iterable[bytes], below: Path, root: Path) -> list[PackageChange]:
    """What differs in the databases among the paths ``changed`` between the root ``below`` and ``root``, by name.

    Both are folders that nobody writes to. Raises CapsulekitError for a damaged rpm database.
    """
    found: list[PackageChange] = []
    for path in {path.removesuffix(b"-wal") for path in changed}:
        if path == STATUS:
            found += _differences(DPKG, dict(_dpkg(below)), dict(_dpkg(root)))
        if path in DATABASES:
            found += _differences(RPM, _rpm(below, path), _rpm(root, path))
    return sorted(found)


def files_of(packages: Iterable[PackageChange], root: Path) -> dict[str, str]:
    """Path (merged /usr, no leading slash) -> package, of those that dpkg has lists of in ``root``, rpm files too."""
    from initramfs_builder.tree import merged

    wanted = {package.name: package.manager for package in packages}
    owners: dict[str, str] = {}
    for name, manager in wanted.items():
        paths: Iterable[str] = _listed(root, name) if manager == DPKG else ()
        owners.update((merged(path), name) for path in paths)
    if RPM in wanted.values():
        owners.update((merged(path), name) for path, name in _rpm_files(root) if name in wanted)
    return owners


def owner_of(path: str, owners: Mapping[str, str], packages: Iterable[PackageChange]) -> str:
    """The package, of those that changed, that a changed path belongs to: a file of it, or what dpkg notes of it."""
    from initramfs_builder.tree import merged

    notes = os.fsdecode(LISTS) + "/"
    if path.startswith(notes):
        name = path.removeprefix(notes).rpartition(".")[0]
        return next((p.name for p in packages if name in (p.name, p.name.partition(":")[0])), "")
    return owners.get(merged(path), "")


def _differences(manager: str, before: dict[str, str], after: dict[str, str]) -> list[PackageChange]:
    return [
        PackageChange(name, before.get(name, ""), after.get(name, ""), manager)
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    ]


def _dpkg(root: Path) -> Iterator[tuple[str, str]]:
    """Name and version of the packages that dpkg has installed (dpkg-query(1), deb-control(5))."""
    fields: dict[str, str] = {}
    for line in [*_lines(root, STATUS), ""]:
        if line:
            key, colon, value = line.partition(": ")
            if colon and not line.startswith(" "):
                fields[key] = value.strip()
            continue
        if fields.get("Status", "").endswith(" installed"):
            arch = f":{fields.get('Architecture')}" if fields.get("Multi-Arch") == "same" else ""
            yield fields.get("Package", "") + arch, fields.get("Version", "")
        fields = {}


def _listed(root: Path, name: str) -> Iterator[str]:
    return _lines(root, LISTS + b"/" + os.fsencode(name) + b".list")


def _lines(root: Path, path: bytes) -> Iterator[str]:
    """A text file's lines; none where it is not there, or only behind a link."""
    with (
        suppress(OSError),
        syscalls.folder_fd(root) as fd,
        os.fdopen(_opened(fd, path), encoding="utf-8", errors="surrogateescape") as lines,
    ):
        yield from (line.rstrip("\n") for line in lines)


def _opened(root: int, path: bytes) -> int:
    """A descriptor of a regular file, which no link leads to: whoever made the tree may have put a device there.

    Raises OSError.
    """
    file = syscalls.open_inside(root, path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no file")
    return file


def _rpm(root: Path, path: bytes) -> dict[str, str]:
    from capsulekit.rpm.rpmdb import headers

    with tempfile.TemporaryDirectory() as scratch:
        file = _copied(root, path, Path(scratch))
        found: dict[str, str] = {}
        for header in headers(file) if file else ():
            # Several versions of one name may be installed, and a public key is a package without an architecture.
            if header.arch:
                name = header.name if header.name not in found else f"{header.name}.{header.version}"
                found[name] = header.version
        return found


def _rpm_files(root: Path) -> Iterator[tuple[str, str]]:
    from capsulekit.rpm.rpmdb import headers

    for path in DATABASES:
        with tempfile.TemporaryDirectory() as scratch:
            file = _copied(root, path, Path(scratch))
            for header in headers(file) if file else ():
                yield from ((one, header.name) for one in header.paths())


def _copied(root: Path, path: bytes, scratch: Path) -> Path | None:
    """A database with its log of what is not yet in it, where it can be read as a whole."""
    target = scratch / "rpmdb.sqlite"
    with syscalls.folder_fd(root) as fd:
        for suffix in ("", "-wal"):
            try:
                source = os.fdopen(_opened(fd, path + suffix.encode()), "rb")
            except OSError:
                continue
            with source, Path(f"{target}{suffix}").open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    if not target.exists():
        return None
    _close_log(target)
    return target


def _close_log(database: Path) -> None:
    """Put what is in the log into the database itself."""
    import sqlite3
    from contextlib import closing

    if Path(f"{database}-wal").exists():
        try:
            with closing(sqlite3.connect(database)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as wrong:
            raise CapsulekitError(f"the rpm database of the edit can't be read: {wrong}") from None
