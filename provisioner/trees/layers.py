"""The list of one mounted layer, and the list of several that lie one over the other. Both are streams."""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from capsulekit.edit.acls import ACCESS
from provisioner.trees.entry import FILE, FOLDER, GONE, LINK, NOTHING, OPAQUE, Entry, escape

_KINDS = {stat.S_IFDIR: FOLDER, stat.S_IFREG: FILE, stat.S_IFLNK: LINK, stat.S_IFBLK: "b", stat.S_IFCHR: "c",
          stat.S_IFIFO: "p", stat.S_IFSOCK: "s"}  # fmt: skip
_OVERLAY = "trusted.overlay."
_DIGITS = 16  # of a digest of attributes: enough to tell two apart, nothing is trusted because of it
# (path as bytes, kind of list) → an ACL's value, as capsulekit.edit.acls has it
Acls = Mapping[tuple[bytes, str], bytes]


def walk_layer(root: Path) -> Iterator[Entry]:
    """Everything in a layer's own mount, sorted, files by their sha256; whiteouts and opaque folders are told.

    The root itself is left out. One file is read after the other, and of folders only those above it are held.
    """
    yield from _walk(os.fsencode(root), b"")


def _walk(root: bytes, folder: bytes) -> Iterator[Entry]:
    with os.scandir(root + b"/" + folder) as found:
        names = sorted((one.name for one in found), key=escape)
    for name in names:
        path = folder + b"/" + name if folder else name
        entry = _entry(root + b"/" + path, escape(path))
        yield entry
        if entry.kind in (FOLDER, OPAQUE):
            yield from _walk(root, path)


def _entry(real: bytes, path: str) -> Entry:
    status = os.lstat(real)
    kind, mode = _KINDS[stat.S_IFMT(status.st_mode)], stat.S_IMODE(status.st_mode)
    if kind == "c" and status.st_rdev == 0:
        return Entry(path, GONE, 0, 0, 0)
    what, size = NOTHING, 0
    if kind == FILE:
        size = status.st_size
        with open(real, "rb") as file:  # noqa: PTH123 - a path of bytes
            what = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == LINK:
        what = escape(os.readlink(real))  # noqa: PTH115 - a path of bytes
    elif kind in "bc":
        what = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    attributes = _attributes(real)
    if attributes.pop(f"{_OVERLAY}opaque", b"") == b"y" and kind == FOLDER:
        kind = OPAQUE
    own = {name: value for name, value in attributes.items() if not name.startswith(_OVERLAY)}
    return Entry(path, kind, mode, status.st_uid, status.st_gid, size, what, attributes_digest(own))


def _attributes(real: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(real, follow_symlinks=False)
        return {name: os.getxattr(real, name, follow_symlinks=False) for name in names}
    except OSError as wrong:  # a squashfs without any attribute says that it supports none
        if wrong.errno != errno.EOPNOTSUPP:
            raise
        return {}


def attributes_digest(attributes: Mapping[str, bytes]) -> str:
    """A word for a file's attributes; "-" where it has none."""
    if not attributes:
        return NOTHING
    summed = hashlib.sha256()
    for name, value in sorted(attributes.items()):
        summed.update(f"{name} {len(value)}\n".encode() + value)
    return summed.hexdigest()[:_DIGITS]


def stacked(layers: Sequence[Iterator[Entry]], acls: Acls | None = None) -> Iterator[Entry]:
    """What shows of layers that lie one over the other, topmost first, as overlayfs shows it; sorted.

    ``acls`` are what holds once all ACL lists were applied (capsulekit.edit.acls.effective).
    """
    named: dict[str, dict[str, bytes]] = {}
    for (path, which), value in (acls or {}).items():
        named.setdefault(escape(path), {})[which] = value
    for entry in _seen(layers):
        held = named.get(entry.path) if entry.kind != LINK else None
        if held:
            mode = _mode_of(held[ACCESS], entry.mode) if held.get(ACCESS) else entry.mode
            entry = replace(entry, mode=mode, attrs=attributes_digest({**held, "": entry.attrs.encode()}))
        yield entry


def _mode_of(acl: bytes, mode: int) -> int:
    """The mode that an access ACL gives a file (acl(5); entries as in linux/posix_acl_xattr.h: tag, bits, id)."""
    bits = {tag: bit for tag, bit, _ in struct.iter_unpack("<HHI", acl[4:])}
    owner, group, mask, other = (bits.get(tag) for tag in (0x01, 0x04, 0x10, 0x20))
    return mode & 0o7000 | (owner or 0) << 6 | (group or 0 if mask is None else mask) << 3 | (other or 0)


def _numbered(number: int, entries: Iterator[Entry]) -> Iterator[tuple[str, int, Entry]]:
    for entry in entries:
        yield entry.key, number, entry


def _seen(layers: Sequence[Iterator[Entry]]) -> Iterator[Entry]:
    # Of the folders above: (what all in it begins with, the number of the lowest layer that shows in it).
    above = [("", len(layers) - 1)]
    lines = heapq.merge(*(_numbered(number, one) for number, one in enumerate(layers)))
    for key, group in groupby(lines, key=lambda line: line[0]):
        while not key.startswith(above[-1][0]):
            above.pop()
        lowest = above[-1][1]
        first = None
        for _, number, entry in group:
            if number > lowest:
                continue
            first = first or entry
            if entry.kind != FOLDER:  # nothing below an opaque folder shows, nor below what is no folder
                lowest = number if entry.kind == OPAQUE else number - 1
        if first is None:
            continue
        if lowest != above[-1][1]:
            above.append((key + "\x01", lowest))
        if first.kind != GONE:
            yield replace(first, kind=FOLDER) if first.kind == OPAQUE else first
