"""Makes a root's tar the same on every machine as it streams by: the table applied, times set, ACLs listed.

What is done to which path and why stands in table.py; what goes to the hybrid layer in hybrid.py.
"""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Protocol

from initramfs_builder.tree import merged

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs import fixes
from capsulekit.rootfs.hybrid import Hybrid, Kept, Moved, Readable, Tally, forget
from capsulekit.rootfs.table import ANY, Row, Rules, regenerate_commands

__all__ = ["VERSION", "Ledger", "Normaliser", "Watcher", "regenerate_commands"]

VERSION = 3
# Names and attributes are bytes; the caller's locale must not decide how they are read.
ENCODING, ERRORS = "utf-8", "surrogateescape"
ACL_KINDS = {"SCHILY.xattr.system.posix_acl_access": "access", "SCHILY.xattr.system.posix_acl_default": "default"}
# Bytes that go through a stream at once: tarfile's own 10 KiB take more than twice the time.
PIECE = 1 << 16
# A watcher is shown no file longer than this (bytes).
WATCHED = 1 << 20


class Watcher(Protocol):
    """Reads some of the root's files as they stream by."""

    def wants(self, path: str) -> bool:
        """Whether it wants the content of a file; ``path`` has no leading slash."""

    def see(self, path: str, data: bytes) -> None:
        """The content of a file it wants."""


@dataclass
class Ledger:
    """What the normaliser did, and what it saw on the way.

    ``rows`` counts the paths by the table's glob; ``paths`` and ``unpacked`` (bytes) are of the root's own layer;
    ``acls`` are (path, kind, value). ``moved`` says by hybridize glob what went to the hybrid layer, ``kept`` what a
    glob matched and stays.
    """

    rows: dict[str, int] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    paths: int = 0
    unpacked: int = 0
    acls: list[tuple[str, str, bytes]] = field(default_factory=list)
    merged_usr: bool = False
    has_init: bool = False
    moved: dict[str, Moved] = field(default_factory=dict)
    kept: tuple[Kept, ...] = ()

    def unmatched(self) -> list[str]:
        """Globs of rows that matched nothing although what leaves such paths is in the root."""
        return sorted(self.due - set(self.rows))


class Normaliser:
    """Rewrites one tar stream into another: owners and modes kept, times set, the table applied, ACLs listed.

    ``family`` is the type of the root's packages ("deb", "rpm", or "any" for neither); ``hybrid``, already scanned,
    says what goes to the hybrid layer; ``see`` is shown files of the root's own packages.
    """

    def __init__(
        self,
        epoch: int,
        init: str = "/sbin/init",
        family: str = ANY,
        hybrid: Hybrid | None = None,
        see: Watcher | None = None,
    ) -> None:
        self.epoch, self._init, self._see, self._hybrid = epoch, merged(init), see, hybrid
        self.ledger = Ledger(kept=hybrid.kept if hybrid else ())
        self._rules = Rules(family)
        self._due: dict[str, set[str]] = defaultdict(set)
        for row in self._rules.rows:
            if row.due:
                self._due[merged(row.due)].add(row.glob)
        self._gone: set[str] = set()
        self._tallies = {glob: Tally() for glob in (hybrid.globs if hybrid else ())}

    def stream(self, source: IO[bytes], sink: IO[bytes], hybrid_sink: IO[bytes] | None = None) -> Ledger:
        """Read a tar from ``source``, write the normalised one to ``sink``, what is hybridized to ``hybrid_sink``.

        ``hybrid_sink`` may be None when the hybrid moves nothing. Raises CapsulekitError.
        """
        try:
            with (
                tarfile.open(
                    fileobj=source, mode="r|", bufsize=PIECE, errorlevel=2, encoding=ENCODING, errors=ERRORS
                ) as tar,
                _writer(sink) as out,
                _writer(hybrid_sink or io.BytesIO()) as shared,
            ):
                for member in tar:
                    data = tar.extractfile(member) if member.isreg() else None
                    self._one(member, data, out, shared)
                    for opened in (tar, out, shared):
                        forget(opened)
        except tarfile.TarError as error:
            raise CapsulekitError(f"the root file system's tar stream broke off: {error}") from None
        self.ledger.moved = {glob: tally.result() for glob, tally in self._tallies.items()}
        return self.ledger

    def _one(
        self, member: tarfile.TarInfo, data: Readable | None, out: tarfile.TarFile, shared: tarfile.TarFile
    ) -> None:
        path = member.name.removeprefix("./").strip("/")
        if path in ("", "."):
            return  # the root folder itself: layer_from_tar sets its mode and owner
        self._look(path, member)
        row = self._row(path, member)
        if row is not None and row.fresh:
            data = self._kept_if_fresh(path, member, data, row)
        if row is not None and (row.action == "remove" or path in self._gone):
            self._gone.add(path)
            return
        if member.islnk() and member.linkname.removeprefix("./") in self._gone:
            raise CapsulekitError(
                f"/{path} is a hard link to a path the normaliser removes: {member.linkname}",
                hint="name both in the normaliser's table, or unlink one in a [scripts] rootfs script",
            )
        if row is not None and data is not None and row.action in ("empty", "fix"):
            content = b"" if row.action == "empty" else row.fix(data.read(), self.epoch) if row.fix else data.read()
            member.size, data = len(content), io.BytesIO(content)
        if self._see and data is not None and member.size <= WATCHED and self._see.wants(path):
            content = data.read()
            self._see.see(path, content)
            data = io.BytesIO(content)
        self._write(path, member, data, out, shared)

    def _kept_if_fresh(self, path: str, member: tarfile.TarInfo, data: Readable | None, row: Row) -> Readable | None:
        """A cache that was made again is kept; its first bytes, read to see that, are put back. A link goes along."""
        assert row.fresh
        if data is None:
            if member.islnk() and member.linkname.removeprefix("./") in self._gone:
                self._gone.add(path)
            return None
        head = data.read(fixes.HEAD)
        if not row.fresh(head, self.epoch):
            self._gone.add(path)
        return _Again(head, data)

    def _row(self, path: str, member: tarfile.TarInfo) -> Row | None:
        for row in self._rules.matching(path):
            if row.files_only and not member.isreg():
                continue
            # Only what holds bytes can be emptied or fixed; folders and links of such a glob stay.
            if row.action in ("empty", "fix") and not member.isreg():
                continue
            self.ledger.rows[row.glob] = self.ledger.rows.get(row.glob, 0) + 1
            return row
        return None

    def _look(self, path: str, member: tarfile.TarInfo) -> None:
        name = merged(path)
        if path == "lib" and member.issym():
            self.ledger.merged_usr = True
        if name == self._init:
            self.ledger.has_init = True
        if name in self._due:
            self.ledger.due |= self._due[name]

    def _write(
        self,
        path: str,
        member: tarfile.TarInfo,
        data: Readable | None,
        out: tarfile.TarFile,
        shared: tarfile.TarFile,
    ) -> None:
        glob = self._hybrid.moves(path) if self._hybrid else None
        attributes = member.pax_headers
        member.mtime, member.uname, member.gname = self.epoch, "", ""
        if glob is not None:
            # What may leave has no attribute to keep: such paths stay.
            member.pax_headers = {}
            shared.addfile(member, self._tallies[glob].counted(data))
            return
        if self._hybrid and member.isdir() and self._hybrid.leads(path):
            member.pax_headers = {}
            shared.addfile(member)
        member.pax_headers = self._attributes(path, attributes)
        if member.islnk():
            self._same_acls(path, member.linkname.removeprefix("./"))
        out.addfile(member, data)
        self.ledger.paths += 1
        self.ledger.unpacked += member.size if member.isreg() else 0

    def _same_acls(self, path: str, first: str) -> None:
        """A tar tells a file's attributes at its first name only; each name has the ACL, and they are few."""
        self.ledger.acls += [(path, kind, value) for at, kind, value in self.ledger.acls if at == first]

    def _attributes(self, path: str, given: Mapping[str, str]) -> dict[str, str]:
        """The extended attributes that a layer keeps; ACLs are noted in the ledger."""
        kept = {}
        for key, value in given.items():
            if key in ACL_KINDS:
                self.ledger.acls.append((path, ACL_KINDS[key], value.encode(ENCODING, ERRORS)))
            elif key.startswith("SCHILY.acl.") and value:
                if f"SCHILY.xattr.system.posix_acl_{key.rpartition('.')[2]}" not in given:
                    raise CapsulekitError(f"/{path}: the tar holds its ACL as text only, and it would be lost")
            elif key.startswith("SCHILY.xattr.") and not key.startswith("SCHILY.xattr.trusted."):
                kept[key] = value
        return kept


class _Again:
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            head = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(head) :]
            return head + (self._rest.read() if size < 0 else self._rest.read(size - len(head)))
        return self._rest.read(size)


@contextmanager
def _writer(sink: IO[bytes]) -> Iterator[tarfile.TarFile]:
    with tarfile.open(
        fileobj=sink, mode="w|", bufsize=PIECE, format=tarfile.PAX_FORMAT, encoding=ENCODING, errors=ERRORS
    ) as out:
        out.copybufsize = PIECE  # type: ignore[attr-defined]  # documented, but not known to the type checker
        yield out
        # What packs a layer may end at the end mark, before the padding; if it failed, its status says so.
        with suppress(BrokenPipeError):
            out.close()
            sink.flush()
