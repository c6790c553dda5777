"""Reading an initramfs image as the kernel does: newc archives one after another, plain or compressed, zeros between.

What the kernel would refuse is refused here, because only the node would say so otherwise: an archive that does not
begin at a multiple of four, rubbish between archives, a compressed stream that ends within an entry, a window or a
checksum its decompressors do not take. The image may come from anywhere: it is streamed, and no more than one piece of
an entry is held at a time, however much a few compressed bytes say they are.
Source: unpack_to_rootfs in init/initramfs.c of the kernel, and buffer-format.rst of its documentation.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from initramfs_builder.cpio import ALIGNMENT, CHUNK, HEADER_SIZE, PATH_MAX, TRAILER
from initramfs_builder.errors import TrustError
from initramfs_builder.streams import Packed, Plain, Stream

# 070702 is newc with sums, which the kernel reads too; nobody makes it, and a sum that is not checked says nothing.
MAGIC = b"070701"
# More than any node could unpack: a few bytes of a compressed stream can claim to be endless.
UNPACKED_MAX = 16 << 30
ENTRIES_MAX = 250_000
NAMES_MAX = 64 << 20
HEX = frozenset(b"0123456789abcdefABCDEF")
KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))


@dataclass
class Member:
    """One entry of an image: what its header says, and a way to its content while it is the current one.

    ``path`` is relative and clean, bytes that are not UTF-8 are surrogate escapes. ``mode`` is a full st_mode, ``size``
    in bytes, ``rdev`` (major, minor) of a device, ``mtime`` in seconds since the epoch. ``links`` above 1 make entries
    of the same ``inode`` (archive, device, number) one file, whose content comes with one of them. ``target`` is what a
    symbolic link says. ``part`` counts the image's archives and compressed streams from 0, ``packed`` says which kind.
    """

    path: str
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    size: int
    inode: tuple[int, int, int, int]
    rdev: tuple[int, int]
    target: str | None = None
    part: int = 0
    packed: str = "plain"
    _left: int = field(default=0, repr=False)
    _stream: Stream | None = field(default=None, repr=False)

    def pieces(self) -> Iterator[bytes]:
        """What is left of the content, in pieces of at most 1 MiB; only until the next member is asked for."""
        while self._left:
            yield self.read(CHUNK)

    def read(self, size: int = -1) -> bytes:
        """The next ``size`` bytes of the content (all that is left by default), fewer at its end."""
        size = self._left if size < 0 else min(size, self._left)
        if not size:
            return b""
        if self._stream is None:
            raise ValueError(f"{self.path} is no longer the image's current entry")
        data = self._stream.exactly(size)
        self._left -= size
        return data

    def close(self) -> None:
        """Skip what was not read; afterwards there is nothing more to read."""
        for _ in self.pieces():
            pass
        self._stream = None


def read_image(path: Path) -> Iterator[Member]:
    """The entries of an image in their order, trailers left out; each can be read until the next is asked for.

    Raises TrustError, naming the offset, when the kernel would not unpack the image or it holds what no archive may
    hold, OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        yield from read_stream(file, str(path))


def read_stream(file: BinaryIO, name: str) -> Iterator[Member]:
    """The same for an open file, whose ``name`` errors say."""
    yield from _Image(Plain(file, name)).members()


class _Image:
    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        self.part = 0
        self.archive = 0
        self.entries = 0
        self.unpacked = 0
        self.names = 0

    def members(self) -> Iterator[Member]:
        while head := self.plain.peek(8):
            if head[:1] == b"\0":
                self.plain.skip_zeros()
            elif head[:1] == b"0" and self.plain.offset % ALIGNMENT == 0:
                yield from self._archive(self.plain)
            else:
                yield from self._compressed(Packed.begin(self.plain))
            self.part += 1 if head[:1] != b"\0" else 0
        if not self.entries:
            raise TrustError(f"{self.plain.name} is not an initramfs image: it holds no entry")

    def _compressed(self, stream: Packed) -> Iterator[Member]:
        while head := stream.peek(1):
            if head == b"\0":
                self._count(stream, stream.skip_zeros())
            elif head == b"0" and stream.offset % ALIGNMENT == 0:
                yield from self._archive(stream)
            else:
                raise stream.damaged("rubbish after an archive")

    def _archive(self, stream: Stream) -> Iterator[Member]:
        """Entries up to a trailer, to zeros, or to the end of the stream: the kernel asks for no more."""
        while stream.peek(1) == b"0":
            member = self._member(stream)
            if member is None:
                self.archive += 1
                return
            self.entries += 1
            self.names += len(member.path) + len(member.target or "")
            self._count(stream, member.size + HEADER_SIZE)
            yield member
            member.close()
            stream.align()

    def _count(self, stream: Stream, size: int) -> None:
        """Count bytes that were unpacked; raises TrustError when something is more than it may be."""
        self.unpacked += size
        if self.entries > ENTRIES_MAX or self.unpacked > UNPACKED_MAX or self.names > NAMES_MAX:
            limits = f"{ENTRIES_MAX} entries, {UNPACKED_MAX >> 30} GiB or {NAMES_MAX >> 20} MiB of names"
            raise stream.damaged(f"more than {limits}")

    def _member(self, stream: Stream) -> Member | None:
        at = stream.offset
        fields = _fields(stream)
        inode, mode, uid, gid, links, mtime, size, major, minor, rmajor, rminor, length, _ = fields
        if not 1 < length <= PATH_MAX:
            raise stream.damaged(f"a name of {length} bytes", at)
        raw = stream.exactly(length)
        stream.align()
        if raw == TRAILER.encode() + b"\0":
            return None
        path = _clean(raw, stream, at)
        if stat.S_IFMT(mode) not in KINDS or mode > 0o177777:
            raise stream.damaged(f"{path} has the mode {mode:o}, which no file can have", at)
        member = Member(
            path, mode, uid, gid, links, mtime, size, (self.archive, major, minor, inode), (rmajor, rminor), None,
            self.part, stream.kind, size, stream,
        )  # fmt: skip
        if stat.S_ISLNK(mode):
            member.target = _target(member, stream, at)
        elif size and not stat.S_ISREG(mode):
            raise stream.damaged(f"{path} has content, and is no file", at)
        return member


def _fields(stream: Stream) -> list[int]:
    at = stream.offset
    header = stream.exactly(HEADER_SIZE)
    if header[:6] != MAGIC:
        raise stream.damaged("no newc header", at)
    if not HEX.issuperset(header[6:]):
        raise stream.damaged("a header that is not in hex digits", at)
    return [int(header[start : start + 8], 16) for start in range(6, HEADER_SIZE, 8)]


def _clean(raw: bytes, stream: Stream, at: int) -> str:
    """The name as a relative path; "./x" and "/x" are x for the kernel, and "." is the root."""
    name, _, rest = raw.partition(b"\0")
    if rest or len(name) != len(raw) - 1:
        raise stream.damaged("a name that does not end where its length says", at)
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise stream.damaged(f"the name {os.fsdecode(name)!r}, which leads out of its folder", at)
    return os.fsdecode(b"/".join(parts))


def _target(member: Member, stream: Stream, at: int) -> str:
    if not 0 < member.size < PATH_MAX:
        raise stream.damaged(f"{member.path} is a link to a name of {member.size} bytes", at)
    target = member.read()
    if b"\0" in target:
        raise stream.damaged(f"{member.path} is a link to a name with a NUL in it", at)
    return os.fsdecode(target)
