"""The capsule's tar: one spelling of ustar, so that a header is right only if it is the one we would write.

Format: POSIX.1-1988 ustar (``info tar``, "Basic Tar Format"); pax ``size`` records as POSIX.1-2001 has them.
GNU tar makes the same bytes with --format=ustar --owner=0 --group=0 --numeric-owner --mode=0644 --mtime=@EPOCH.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from capsulekit.errors import TrustError

BLOCK = 512
RECORD = 10240  # the blocking: a file is a whole number of these
PAX_FROM = 8 << 30  # bytes; from this size on a ustar header has no room for it
MAX_MTIME = 0o77777777777

_PAX_NAME = "././@PaxHeader"
_PAX_BODY = re.compile(rb"([0-9]{2}) size=([1-9][0-9]{9,17})\n")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a fifo",
}


@dataclass(frozen=True)
class Entry:
    """A member: where its data starts in the file, and how long it is (bytes)."""

    name: str
    offset: int
    size: int


def header(name: str, size: int, mtime: int) -> bytes:
    """The header of a member, with its pax header before it when the size needs one."""
    if size < PAX_FROM:
        return _ustar(name, size, mtime, b"0")
    record = f" size={size}\n"
    body = f"{len(record) + 2}{record}".encode()
    return _ustar(_PAX_NAME, len(body), mtime, b"x") + padded(body) + _ustar(name, 0, mtime, b"0")


def padded(data: bytes) -> bytes:
    """Data and zeros up to the next block."""
    return data + bytes(-len(data) % BLOCK)


def ending(written: int) -> bytes:
    """What closes a file after ``written`` bytes: two zero blocks, and zeros up to a whole record."""
    return bytes(2 * BLOCK + -(written + 2 * BLOCK) % RECORD)


def _ustar(name: str, size: int, mtime: int, kind: bytes) -> bytes:
    encoded = name.encode("ascii")
    if len(encoded) > 100 or not 0 <= mtime <= MAX_MTIME:
        raise ValueError(f"does not fit a ustar header: {name!r}, mtime {mtime}")
    head = encoded.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    head += b"%011o\0%011o\0" % (size, mtime)
    tail = kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
    total = sum(head) + 8 * 0x20 + sum(tail)
    return head + b"%06o\0 " % total + tail


def scan(fd: int, size: int, most: int) -> tuple[int, list[Entry]]:
    """Walk a file of ``size`` bytes: (mtime of every header, the members). At most ``most`` members are read.

    Every byte that is no member's data is accounted for. Raises TrustError that says what is wrong and where.
    """
    entries: list[Entry] = []
    at, mtime = 0, -1
    while True:
        block = _at(fd, at, BLOCK, size)
        if not any(block):
            break
        if len(entries) >= most:
            raise TrustError(f"more than {most} members")
        mtime = _number(block[136:148], at) if mtime < 0 else mtime
        entry, at = _member(fd, block, at, size, mtime)
        entries.append(entry)
    rest = _at(fd, at, min(size - at, RECORD + 2 * BLOCK), size)
    if any(rest) or size % RECORD or len(rest) != size - at or len(rest) != len(ending(at)):
        raise TrustError("truncated or followed by something: the end is not that of a capsule")
    return mtime, entries


def _member(fd: int, block: bytes, at: int, size: int, mtime: int) -> tuple[Entry, int]:
    """The member whose header(s) start at ``at``, and where the next one starts."""
    start, length = at, None
    if block[156:157] == b"x":
        start, length = at + 2 * BLOCK, _pax_size(fd, block, at, size, mtime)
        block = _at(fd, start, BLOCK, size)
    name = _name(block, start)
    if block[156:157] != b"0":
        raise TrustError(f"member {name!r} is {_KINDS.get(block[156:157], 'an extension of tar')}, not a file")
    told = _number(block[124:136], start)
    if block != _ustar(name, told, mtime, b"0") or (length is not None and told != 0):
        raise TrustError(f"damaged header of member {name!r}")
    length = told if length is None else length
    data = start + BLOCK
    after = data + length + -length % BLOCK
    if after > size:
        raise TrustError(f"truncated: member {name!r} goes on past the end of the file")
    if any(_at(fd, data + length, -length % BLOCK, size)):
        raise TrustError(f"damaged: something is hidden behind member {name!r}")
    return Entry(name, data, length), after


def _pax_size(fd: int, block: bytes, at: int, size: int, mtime: int) -> int:
    length = _number(block[124:136], at)
    body = _at(fd, at + BLOCK, BLOCK, size)
    found = _PAX_BODY.fullmatch(body[:length]) if length <= 64 else None
    told = int(found.group(2)) if found else 0
    if not found or told < PAX_FROM or padded(body[:length]) != body:
        raise TrustError("a pax header that says anything but a size of 8 GiB or more")
    if block + body != header("x", told, mtime)[: 2 * BLOCK]:
        raise TrustError("damaged pax header")
    return told


def _name(block: bytes, at: int) -> str:
    if block[257:265] != b"ustar\x0000" or _checksum(block) != block[148:156]:
        raise TrustError(f"not a capsule, or damaged: no ustar header at byte {at}")
    raw = block[:100].rstrip(b"\0")
    if not raw or not raw.isascii() or not raw.decode("ascii").isprintable() or any(block[345:500]):
        raise TrustError(f"a member's name is not one of a capsule (at byte {at})")
    return raw.decode("ascii")


def _checksum(block: bytes) -> bytes:
    return b"%06o\0 " % (sum(block[:148]) + 8 * 0x20 + sum(block[156:]))


def _number(raw: bytes, at: int) -> int:
    if not re.fullmatch(rb"[0-7]{11}\0", raw):
        raise TrustError(f"not a capsule, or damaged: a header's number at byte {at} is not octal")
    return int(raw[:11], 8)


def _at(fd: int, offset: int, length: int, size: int) -> bytes:
    """Just ``length`` bytes at ``offset``; a file that ends sooner is truncated."""
    data = os.pread(fd, length, offset) if offset + length <= size else b""
    if len(data) != length:
        raise TrustError("truncated: the file ends in the middle of a member")
    return data
