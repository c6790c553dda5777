"""What varies between two installs of the same packages, as a table, applied to the root's tar as it streams by.

Every row names the paths, what is done to them and why. A row that never matches is reported, so that the table does
not rot. The list of paths was measured by building the same packages twice (docs/reference/normaliser.md).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import IO

from capsulekit.errors import CapsulekitError

VERSION = 2
# Names and attributes are bytes; the caller's locale must not decide how they are read.
ENCODING, ERRORS = "utf-8", "surrogateescape"


@dataclass(frozen=True)
class Row:
    """One rule. ``glob`` is anchored at the root and its ``*`` crosses ``/``; ``action`` is remove, empty or fix.

    ``files_only`` spares links and folders.
    """

    glob: str
    action: str
    why: str
    fix: Callable[[bytes, int], bytes] | None = None
    files_only: bool = False


def _last_change(data: bytes, epoch: int) -> bytes:
    """/etc/shadow: the day of the last password change becomes the build's day (shadow(5), third field)."""
    day = str(epoch // 86400).encode()
    rows = [line.split(b":") for line in data.splitlines()]
    return b"".join(b":".join([*r[:2], day, *r[3:]]) + b"\n" for r in rows if len(r) > 3)


TABLE: tuple[Row, ...] = (
    Row("etc/machine-id", "empty", "made per node from the registry; empty, because a missing one means first boot"),
    Row("var/lib/dbus/machine-id", "remove", "dbus reads /etc/machine-id"),
    Row("etc/hostname", "remove", "copied from the builder; the hostname module writes it", files_only=True),
    Row("etc/resolv.conf", "remove", "copied from the builder", files_only=True),
    Row("etc/ssh/ssh_host_*", "remove", "a key shared by nodes is no key; the sshkeys module brings each node its own"),
    Row("etc/munge/munge.key", "remove", "a secret of the build would be known to everyone who has the capsule"),
    Row("etc/ssl/private/ssl-cert-snakeoil.key", "remove", "a secret made at install"),
    Row("etc/ssl/certs/ssl-cert-snakeoil.pem", "remove", "made at install"),
    Row("etc/shadow", "fix", "the day of the last change is the day of the build", _last_change),
    Row("etc/passwd-", "remove", "a backup of shadow's tools"),
    Row("etc/shadow-", "remove", "a backup of shadow's tools"),
    Row("etc/group-", "remove", "a backup of shadow's tools"),
    Row("etc/gshadow-", "remove", "a backup of shadow's tools"),
    Row("etc/subuid-", "remove", "a backup of shadow's tools"),
    Row("etc/subgid-", "remove", "a backup of shadow's tools"),
    Row("etc/.pwd.lock", "empty", "a lock file"),
    Row("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "remove", "a setting of the build, not of the node"),
    Row("etc/apt/apt.conf.d/99mmdebstrap", "remove", "a setting of the build, not of the node"),
    Row("var/cache/ldconfig/aux-cache", "remove", "holds inode numbers and times"),
    Row("var/cache/debconf/*-old", "remove", "backups"),
    Row("var/lib/dpkg/*-old", "remove", "backups"),
    Row("var/lib/dpkg/lock*", "remove", "lock files"),
    Row("var/lib/apt/lists/*", "remove", "the index of the build's own repository"),
    Row("var/lib/apt/extended_states", "remove", "which packages the build named is not which the admin chose"),
    Row("var/cache/apt/*.bin", "remove", "caches of the index"),
    Row("var/cache/apt/archives/*", "remove", "packages, and a folder owned by the builder's _apt; apt makes it again"),
    Row("var/cache/man/*", "remove", "an index with times in it; man-db makes it again"),
    Row("var/log/*", "empty", "written at install, with times", files_only=True),
    Row("var/lib/systemd/random-seed", "remove", "a seed shared by nodes is no seed"),
    Row("var/lib/systemd/catalog/database", "remove", "holds a time; systemd-journal-catalog-update makes it again"),
    Row("*/__pycache__/*", "remove", "byte code with times in it; Python makes it again"),
    Row("boot/*", "remove", "the kernel lives in the capsule's own boot/", files_only=True),
    Row("run/*", "remove", "left by installers; a tmpfs covers it"),
    Row("tmp/*", "remove", "left by installers"),
    Row("var/tmp/*", "remove", "left by installers"),
    Row("dev/*", "remove", "devtmpfs covers it"),
)  # fmt: skip


def reference() -> str:
    """docs/reference/normaliser.md: the table as Markdown."""
    rows = [f"| `/{row.glob}` | {row.action} | {row.why} |" for row in TABLE]
    return INTRODUCTION + "| path | what | why |\n|---|---|---|\n" + "\n".join(rows) + "\n"


INTRODUCTION = """<!-- Made by capsulekit.rootfs.normalise.reference(); a test keeps it current. -->
# The normaliser

Two installs of the same packages differ in a few files. While the root's tar streams by, the build sets every mtime to
the build epoch, drops the names of owners, the `trusted.*` attributes and the times of access, lists POSIX ACLs beside
the layer (squashfs cannot hold them), and applies this table. The first row that matches counts; `*` matches `/` too.

- remove: the path is not in the layer
- empty: the file is there, with nothing in it
- fix: the part that varies is set from the build epoch

"""


ACL_KINDS = {"SCHILY.xattr.system.posix_acl_access": "access", "SCHILY.xattr.system.posix_acl_default": "default"}


@dataclass
class Ledger:
    """What the normaliser did, and what it saw on the way."""

    rows: dict[str, int] = field(default_factory=dict)
    paths: int = 0
    unpacked: int = 0
    acls: list[tuple[str, str, bytes]] = field(default_factory=list)
    merged_usr: bool = False
    has_init: bool = False

    def unmatched(self) -> list[str]:
        """Globs of rows that matched nothing."""
        return [row.glob for row in TABLE if row.glob not in self.rows]


class Normaliser:
    """Rewrites one tar stream into another: owners and modes kept, times set, the table applied, ACLs listed."""

    def __init__(self, epoch: int, init: str = "/sbin/init") -> None:
        self.epoch, self._init = epoch, init.lstrip("/")
        self.ledger = Ledger()
        self._rows = [(re.compile(translate(row.glob)), row) for row in TABLE]
        self._gone: set[str] = set()

    def stream(self, source: IO[bytes], sink: IO[bytes]) -> Ledger:
        """Read a tar from ``source``, write the normalised one to ``sink``; raises CapsulekitError."""
        try:
            with (
                tarfile.open(fileobj=source, mode="r|", errorlevel=2, encoding=ENCODING, errors=ERRORS) as tar,
                tarfile.open(
                    fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, encoding=ENCODING, errors=ERRORS
                ) as out,
            ):
                for member in tar:
                    data = tar.extractfile(member) if member.isreg() else None
                    self._one(member, data, out)
        except tarfile.TarError as error:
            raise CapsulekitError(f"the root file system's tar stream broke off: {error}") from None
        return self.ledger

    def _one(self, member: tarfile.TarInfo, data: IO[bytes] | None, out: tarfile.TarFile) -> None:
        path = member.name.removeprefix("./").strip("/")
        if path in ("", "."):
            return  # the root folder itself: layer_from_tar sets its mode and owner
        row = self._row(path, member)
        self._look(path, member)
        if row is not None and row.action == "remove":
            self._gone.add(path)
            return
        if member.islnk() and member.linkname.removeprefix("./") in self._gone:
            raise CapsulekitError(
                f"/{path} is a hard link to a path the normaliser removes: {member.linkname}",
                hint="name both in the normaliser's table, or unlink one in a [scripts] rootfs script",
            )
        if row is not None and data is not None:
            content = b"" if row.action == "empty" else row.fix(data.read(), self.epoch) if row.fix else data.read()
            member.size, data = len(content), io.BytesIO(content)
        self._write(path, member, data, out)

    def _row(self, path: str, member: tarfile.TarInfo) -> Row | None:
        for pattern, row in self._rows:
            if not pattern.match(path) or (row.files_only and not member.isreg()):
                continue
            # Only what holds bytes can be emptied or fixed; folders and links of such a glob stay.
            if row.action != "remove" and not member.isreg():
                continue
            self.ledger.rows[row.glob] = self.ledger.rows.get(row.glob, 0) + 1
            return row
        return None

    def _look(self, path: str, member: tarfile.TarInfo) -> None:
        if path == "lib" and member.issym():
            self.ledger.merged_usr = True
        if path in (self._init, f"usr/{self._init}"):
            self.ledger.has_init = True

    def _write(self, path: str, member: tarfile.TarInfo, data: IO[bytes] | None, out: tarfile.TarFile) -> None:
        kept = {}
        for key, value in member.pax_headers.items():
            if key in ACL_KINDS:
                self.ledger.acls.append((path, ACL_KINDS[key], value.encode("utf-8", "surrogateescape")))
            elif key.startswith("SCHILY.acl.") and value:
                if f"SCHILY.xattr.system.posix_acl_{key.rpartition('.')[2]}" not in member.pax_headers:
                    raise CapsulekitError(f"/{path}: the tar holds its ACL as text only, and it would be lost")
            elif key.startswith("SCHILY.xattr.") and not key.startswith("SCHILY.xattr.trusted."):
                kept[key] = value
        member.pax_headers = kept
        member.mtime, member.uname, member.gname = self.epoch, "", ""
        self.ledger.paths += 1
        self.ledger.unpacked += member.size if member.isreg() else 0
        out.addfile(member, data)
