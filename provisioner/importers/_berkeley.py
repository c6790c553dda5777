"""Berkeley DB files read without its library: the hash and btree pages of version 1.85's successors (db 4 and 5).

The format is that of db_page.h, hash.h and btree.h of Berkeley DB 5.3: fixed-size pages, numbers in the byte order of
the machine that wrote them. No Python package for it can be installed without a compiler and the library's headers, and
reading two kinds of leaf page takes less than a page. Nothing is ever written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from capsulekit.errors import CapsulekitError

BIGGEST = 64 << 20  # bytes; ten thousand nodes take one MB a table
HASH, BTREE = 0x061561, 0x053162
HASH_UNSORTED, LEAF_BTREE, OVERFLOW, HASH_SORTED = 2, 5, 7, 13  # page types
HEADER = 26  # bytes: LSN 8, number 4, previous 4, next 4, entries 2, free space's offset 2, level 1, type 1
DELETED = 0x80


def is_berkeley(path: Path) -> bool:
    """Whether the file is a Berkeley DB hash or btree."""
    with path.open("rb") as file:
        return _order(file.read(24)) is not None


def read_pairs(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Every (key, value) of the file. Raises CapsulekitError when it is damaged, encrypted or of another kind."""
    if path.stat().st_size > BIGGEST:
        raise CapsulekitError(f"{path} is larger than {BIGGEST >> 20} MB: that is no table of nodes")
    content = path.read_bytes()
    order = _order(content)
    if order is None:
        raise CapsulekitError(f"{path} is not a Berkeley DB hash or btree")
    (size,) = struct.unpack_from(order + "I", content, 20)
    if size < 512 or size > 65536 or size & (size - 1):
        raise CapsulekitError(f"{path} is damaged: its pages would have {size} bytes")
    try:
        for number in range(1, len(content) // size):
            yield from _pairs(_Page(content, number * size, size, order))
    except (struct.error, IndexError) as error:
        raise CapsulekitError(
            f"{path} is damaged: {error}", hint="dump it where it was made: db_dump -p FILE"
        ) from error


def _order(content: bytes) -> str | None:
    for order in "<>":
        if len(content) >= 24 and struct.unpack_from(order + "I", content, 12)[0] in (HASH, BTREE):
            return order
    return None


class _Page:
    """One page: its type and its items, a pair being two items in a row."""

    def __init__(self, content: bytes, start: int, size: int, order: str) -> None:
        self.content, self.start, self.size, self.order = content, start, size, order
        (self.entries,) = struct.unpack_from(order + "H", content, start + 20)
        self.type = content[start + 25]
        self.offsets = struct.unpack_from(f"{order}{self.entries}H", content, start + HEADER) if self.is_leaf else ()

    @property
    def is_leaf(self) -> bool:
        return self.type in (HASH_UNSORTED, HASH_SORTED, LEAF_BTREE)

    def item(self, number: int) -> bytes | None:
        """The bytes of one item; None when it is deleted."""
        at = self.offsets[number]
        if not HEADER <= at < self.size:
            raise IndexError(f"an item at {at} of a page")
        if self.type == LEAF_BTREE:
            return self._btree_item(at)
        # Hash pages: items lie one before the other from the page's end, each one byte of kind and its content.
        end = self.offsets[number - 1] if number else self.size
        kind = self.content[self.start + at]
        if kind == 1:
            return self.content[self.start + at + 1 : self.start + end]
        if kind == 3:
            page, total = struct.unpack_from(self.order + "II", self.content, self.start + at + 4)
            return self._overflow(page, total)
        raise IndexError(f"an item of kind {kind}")

    def _btree_item(self, at: int) -> bytes | None:
        length, kind = struct.unpack_from(self.order + "HB", self.content, self.start + at)
        if kind & DELETED:
            return None
        if kind == 1:
            if at + 3 + length > self.size:
                raise IndexError(f"an item of {length} bytes at {at} of a page")
            return self.content[self.start + at + 3 : self.start + at + 3 + length]
        if kind == 3:
            page, total = struct.unpack_from(self.order + "II", self.content, self.start + at + 4)
            return self._overflow(page, total)
        raise IndexError(f"an item of kind {kind}")

    def _overflow(self, page: int, total: int) -> bytes:
        """A value that has pages of its own, one after the other."""
        parts, seen = b"", set[int]()
        while page and len(parts) < total:
            start = page * self.size
            if page in seen or start + self.size > len(self.content) or self.content[start + 25] != OVERFLOW:
                raise IndexError(f"overflow page {page}")
            seen.add(page)
            # On such a page the field of the free space's offset holds how many bytes it carries.
            page, used = struct.unpack_from(self.order + "I2xH", self.content, start + 16)
            parts += self.content[start + HEADER : start + HEADER + used]
        return parts[:total]


def _pairs(page: _Page) -> Iterator[tuple[bytes, bytes]]:
    for number in range(0, len(page.offsets) - 1, 2):
        key, value = page.item(number), page.item(number + 1)
        if key is not None and value is not None:
            yield key, value
