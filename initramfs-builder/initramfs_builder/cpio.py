"""Writing newc cpio archives, the only archive format the Linux kernel unpacks as an initramfs.

Entries are streamed in the order given. Inode numbers are counted here: GNU cpio cuts 64-bit inode numbers to 32 bits,
which made unrelated files hard links of each other. newc stores no extended attributes. What the kernel would skip
without a word (names over PATH_MAX, entries whose folder is missing) is refused here.
Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from initramfs_builder.errors import CapsulekitError

MAGIC = b"070701"
HEADER_SIZE = 110
ALIGNMENT = 4
TRAILER = "TRAILER!!!"
FIELD_MAX = 0xFFFFFFFF  # every field is eight hex digits
PATH_MAX = 4096  # of the kernel, counted with the closing NUL
NAME_MAX = 255
CHUNK = 1 << 20


class Sink(Protocol):
    """Anything bytes can be written to."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Slice:
    """The first ``size`` bytes of a file."""

    path: Path
    size: int


@dataclass(frozen=True)
class Entry:
    """One member of an archive.

    ``path`` is relative, with "/" between its parts; bytes that are not UTF-8 are held as surrogate escapes, as
    ``os.fsdecode`` makes them. ``mode`` is a full st_mode (type and permissions). ``data`` is the content of a regular
    file (a Path or a Slice is read while writing), ``target`` what a symbolic link says, ``rdev`` (major, minor) of a
    device. ``mtime`` (seconds since the epoch) overrides the archive's.
    """

    path: str
    mode: int
    data: bytes | Path | Slice | None = None
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] = (0, 0)
    target: str | None = None
    mtime: int | None = None


@dataclass(frozen=True)
class Written:
    """What went into an archive: number of entries (without the trailer) and bytes, padding included."""

    entries: int
    size: int


def directory(path: str, permissions: int = 0o755) -> Entry:
    """A folder."""
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes | Path | Slice, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | permissions, data=data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target=target)


def char_device(path: str, major: int, minor: int, permissions: int) -> Entry:
    """A character device."""
    return Entry(path, stat.S_IFCHR | permissions, rdev=(major, minor))


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The entries sorted so that folders come before what they hold, missing parent folders added (0755)."""
    known: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in known:
            raise CapsulekitError(f"cpio: {_shown(entry.path)} is given twice")
        known[entry.path] = entry
    for path in list(known):
        for parent in parents(path):
            known.setdefault(parent, directory(parent))
    return sorted(known.values(), key=lambda entry: [os.fsencode(part) for part in entry.path.split("/")])


def parents(path: str) -> Iterator[str]:
    """Every folder above a path, outermost first."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])


def entry_size(entry: Entry) -> int:
    """Bytes that write_cpio writes for an entry; a file on disk is asked for its size, not read."""
    return _padded(HEADER_SIZE + len(os.fsencode(entry.path)) + 1) + _padded(_data_size(entry))


def write_cpio(
    out: Sink, entries: Iterable[Entry], mtime: int, *, before: Iterable[str] = (), trailer: bool = True
) -> Written:
    """Write an archive with its trailer, its length a multiple of 4 bytes; the same entries give the same bytes.

    Each entry's folder must come before it (see with_parents). ``mtime`` is in seconds since the epoch. An archive may
    be written in parts, of which only the last gets the ``trailer``; ``before`` are the folders of earlier ones.
    Raises CapsulekitError for anything newc or the kernel cannot take, or when a file changes while it is read.
    """
    written = 0
    count = 0
    folders = set(before)
    names: set[str] = set()
    for count, entry in enumerate(entries, start=1):
        _check(entry, names, folders)
        names.add(entry.path)
        if stat.S_ISDIR(entry.mode):
            folders.add(entry.path)
        size = _data_size(entry)
        written += _put(out, _header(entry, count, size, entry.mtime if entry.mtime is not None else mtime))
        written += _put_data(out, entry, size)
    if trailer:
        written += _put(out, _header(Entry(TRAILER, 0, mtime=0), 0, 0, 0))
    return Written(count, written)


def _check(entry: Entry, names: set[str], folders: set[str]) -> None:
    shown = _shown(entry.path)
    raw = os.fsencode(entry.path)
    parts = raw.split(b"/")
    if not raw or any(part in (b"", b".", b"..") for part in parts) or b"\0" in raw or entry.path == TRAILER:
        raise CapsulekitError(f"cpio: {shown!r} is not a name an archive can hold")
    if len(raw) + 1 > PATH_MAX or any(len(part) > NAME_MAX for part in parts):
        raise CapsulekitError(f"cpio: the name {shown[:60]}… is too long for the kernel ({len(raw)} bytes)")
    if entry.path in names:
        raise CapsulekitError(f"cpio: {shown} is given twice")
    parent, _, _ = entry.path.rpartition("/")
    if parent and parent not in folders:
        raise CapsulekitError(f"cpio: {shown} comes before its folder, the kernel would drop it")
    _check_kind(entry, shown)


def _check_kind(entry: Entry, shown: str) -> None:
    is_link = stat.S_ISLNK(entry.mode)
    if is_link != (entry.target is not None) or stat.S_ISREG(entry.mode) != (entry.data is not None):
        raise CapsulekitError(f"cpio: {shown} has a type ({stat.filemode(entry.mode)}) that does not fit its content")
    if entry.target is not None:
        target = os.fsencode(entry.target)
        if not target or b"\0" in target or len(target) + 1 > PATH_MAX:
            raise CapsulekitError(f"cpio: the link {shown} has a target the kernel cannot take ({len(target)} bytes)")
    if stat.S_IFMT(entry.mode) == 0:
        raise CapsulekitError(f"cpio: {shown} has no file type in its mode")


def _header(entry: Entry, inode: int, size: int, mtime: int) -> bytes:
    name = os.fsencode(entry.path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.rdev
    fields = (inode, entry.mode, entry.uid, entry.gid, links, mtime, size, 0, 0, major, minor, len(name), 0)
    for value in fields:
        if not 0 <= value <= FIELD_MAX:
            raise CapsulekitError(
                f"cpio: {_shown(entry.path)} does not fit: {value} is more than a newc field holds",
                hint="newc holds files below 4 GiB and times from 1970 to 2106",
            )
    return _pad(MAGIC + b"".join(b"%08X" % value for value in fields) + name)


def _data_size(entry: Entry) -> int:
    if entry.target is not None:
        return len(os.fsencode(entry.target))
    if isinstance(entry.data, Path):
        return entry.data.stat().st_size
    if isinstance(entry.data, Slice):
        return entry.data.size
    return len(entry.data or b"")


def _put_data(out: Sink, entry: Entry, size: int) -> int:
    if entry.target is not None:
        return _put(out, _pad(os.fsencode(entry.target)))
    if isinstance(entry.data, Slice):
        copied = copy(out, entry.data)
    elif isinstance(entry.data, Path):
        copied = copy(out, Slice(entry.data, size), whole=True)
    else:
        return _put(out, _pad(entry.data or b""))
    return copied + _put(out, bytes(_padded(copied) - copied))


def copy(out: Sink, part: Slice, *, whole: bool = False) -> int:
    """Copy a part of a file; returns its size in bytes.

    Raises CapsulekitError when the file is shorter, or longer and ``whole`` is asked for: it changes meanwhile.
    """
    left = part.size
    with part.path.open("rb") as source:
        while left and (piece := source.read(min(left, CHUNK))):
            left -= len(piece)
            out.write(piece)
        if left or (whole and source.read(1)):
            raise CapsulekitError(f"cpio: {part.path} changed while it was read, it had {part.size} bytes")
    return part.size


def _put(out: Sink, data: bytes) -> int:
    out.write(data)
    return len(data)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(data: bytes) -> bytes:
    return data.ljust(_padded(len(data)), b"\0")


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
