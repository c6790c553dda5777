"""One path of a list: a line ``PATH KIND MODE UID GID SIZE WHAT[ ATTRS]``. docs/reference/tree.md has the format.

Lists are sorted so that a folder stands before all in it and nothing else between: by ``key``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

FOLDER, OPAQUE, FILE, LINK, GONE = "d", "D", "f", "l", "x"
KINDS = {"d": "folder", "D": "folder", "f": "file", "l": "link", "b": "block device", "c": "character device",
         "p": "fifo", "s": "socket", "x": "gone"}  # fmt: skip
NOTHING = "-"
# Bytes that stand for themselves: the printable ones of ASCII without the blank and the percent sign.
_ODD = re.compile(rb"[^!-$&-~]")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A path (escaped, relative to the root), what it is, and for whom. ``size`` in bytes, files only.

    ``what`` is a file's hex sha256, a link's target (escaped), a device's "MAJOR:MINOR", or "-": none, or not looked
    at. ``attrs`` is a digest of extended attributes and ACLs; "" where nobody looked (a node has no program for it).
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    what: str = NOTHING
    attrs: str = ""

    @property
    def key(self) -> str:
        """What lists are sorted by."""
        return key_of(self.path)

    def line(self) -> str:
        """The line of a list, without its end."""
        first = f"{self.path} {self.kind} {self.mode:04o} {self.uid} {self.gid} {self.size} {self.what}"
        return f"{first} {self.attrs}" if self.attrs else first

    def alike(self, other: Entry) -> bool:
        """Whether the two have the same content: kind, and bytes, target or device. False when nobody knows."""
        if (self.kind.lower(), self.what, self.size) != (other.kind.lower(), other.what, other.size):
            return False
        return self.kind != FILE or self.what != NOTHING

    def same(self, other: Entry) -> bool:
        """Whether the two are alike, with the same mode and owner, and attributes where both tell them."""
        if not self.alike(other) or (self.uid, self.gid) != (other.uid, other.gid):
            return False
        if self.kind != LINK and self.mode != other.mode:
            return False
        return not (self.attrs and other.attrs) or self.attrs == other.attrs


def parse(line: str) -> Entry:
    """The entry of a line that we wrote ourselves."""
    path, kind, mode, uid, gid, size, what, *attrs = line.split(" ")
    return Entry(path, kind, int(mode, 8), int(uid), int(gid), int(size), what, attrs[0] if attrs else "")


def key_of(path: str) -> str:
    """What a path (escaped) is sorted by: a folder, then all in it, then the next."""
    return path.replace("/", "\x01")


def escape(raw: bytes) -> str:
    """A path's bytes as one plain word."""
    return _ODD.sub(lambda odd: b"%%%02X" % odd[0][0], raw).decode()


def unescape(text: str) -> bytes:
    """The bytes behind ``escape``."""
    return unquote_to_bytes(text)


def shown(path: str) -> str:
    """An escaped path for people: from the root, and with its letters where they can be printed."""
    text = unescape(path).decode("utf-8", "surrogateescape")
    return "/" + (text if text.isprintable() else path)


def parents(path: str) -> list[str]:
    """Every folder above a path (escaped), the nearest first, without the root."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found
