"""ACL lists as a stack has them: one beside each layer, applied from the lowest layer up (capsule-format.md).

A line is percent-escaped path, ``access`` or ``default``, entries (see capsulekit.rootfs.root.acl_text). What an upper
layer puts in a path's place has the list's ACL of the path below as well, so its own list says where it has none:
``access`` with the three entries of a plain mode, ``default`` with no entries at all.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from capsulekit.edit import syscalls
from capsulekit.errors import CapsulekitError

ACCESS, DEFAULT = "access", "default"
ATTRIBUTES = {ACCESS: "system.posix_acl_access", DEFAULT: "system.posix_acl_default"}
MAX_LIST = 64 << 20  # bytes, of one layer's list
# linux/posix_acl_xattr.h: version, then (tag, bits, id) for each entry
_VERSION, _NO_ID = 2, 0xFFFFFFFF
_TAGS = {"u": (1, 2), "g": (4, 8), "m": (16, 16), "o": (32, 32)}
_ENTRY = re.compile(r"([ugmo]):([0-9]*):([r-][w-][x-])")

# (path, kind) -> the attribute's value; b"" says that there is none
Acls = dict[tuple[bytes, str], bytes]


def parse(text: bytes) -> Iterator[tuple[bytes, str, bytes]]:
    """(path, kind, value of the attribute, empty for none) of each line. Raises CapsulekitError."""
    if len(text) > MAX_LIST:
        raise CapsulekitError(f"an ACL list has {len(text)} bytes; at most {MAX_LIST} are expected")
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), 1):
        words = line.split("\t")
        if len(words) != 3 or words[1] not in ATTRIBUTES:
            raise CapsulekitError(f"an ACL list is damaged: line {number}")
        yield unquote_to_bytes(words[0]), words[1], _value(words[2], number)


def effective(lists: Sequence[bytes]) -> Acls:
    """What holds when the lists, the topmost layer's first, are applied from the last to the first."""
    found: Acls = {}
    for text in reversed(lists):
        found.update({(path, kind): value for path, kind, value in parse(text)})
    return found


def listed(acls: Iterable[tuple[bytes, str, bytes]]) -> bytes:
    """The list of (path, kind, value): as acl_text makes it, and a line without entries for a value of b""."""
    from capsulekit.rootfs.root import acl_text

    given = list(acls)
    held = acl_text([(os.fsdecode(path), kind, value) for path, kind, value in given if value])
    none = [f"{quote_from_bytes(path)}\t{kind}\t\n".encode() for path, kind, value in given if not value]
    return b"".join(sorted([*held.splitlines(keepends=True), *none]))


def minimal(mode: int) -> bytes:
    """The access ACL that says no more than a mode does."""
    entries = (_TAGS["u"][0], mode >> 6 & 7), (_TAGS["g"][0], mode >> 3 & 7), (_TAGS["o"][0], mode & 7)
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", tag, bits, _NO_ID) for tag, bits in entries)


def is_minimal(value: bytes) -> bool:
    """Whether an ACL says no more than a mode does: three entries and no mask (acl(5))."""
    return len(value) == 4 + 3 * 8


def apply(root: Path, acls: Acls) -> None:
    """Set the ACLs on what is there below ``root``, which takes them; no link is followed. Raises CapsulekitError.

    ``root`` has none yet, so where there is no more than a mode there is nothing to set: layers keep modes.
    """
    with syscalls.folder_fd(root) as fd:
        for (path, kind), value in sorted(acls.items()):
            if not value or (kind == ACCESS and is_minimal(value)):
                continue
            try:
                with syscalls.opened_inside(fd, path) as one:
                    _set(syscalls.by_fd(one), kind, value)
            except OSError as wrong:
                # Taken away by a layer above, or a link now, or below one.
                if wrong.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    shown = os.fsdecode(path).encode("unicode_escape").decode()
                    raise CapsulekitError(f"can't set the ACL of /{shown}: {wrong.strerror}") from wrong


def _set(path: str, kind: str, value: bytes) -> None:
    status = Path(path).stat()
    if kind == DEFAULT and not os.path.isdir(path):  # noqa: PTH112 (one word for one call)
        return
    # Copied up first: overlay refuses an ACL while the file below is squashfs's, which knows none.
    Path(path).chmod(status.st_mode & 0o7777)
    os.setxattr(path, ATTRIBUTES[kind], value)


def _value(entries: str, line: int) -> bytes:
    """The attribute's value of setfacl's short spelling."""
    if not entries:
        return b""
    packed = []
    for entry in entries.split(","):
        found = _ENTRY.fullmatch(entry)
        if not found or (found[2] and found[1] in "mo"):
            raise CapsulekitError(f"an ACL list is damaged: line {line}")
        tag = _TAGS[found[1]][1 if found[2] else 0]
        bits = sum(bit for bit, letter in zip((4, 2, 1), found[3], strict=True) if letter != "-")
        packed.append((tag, int(found[2]) if found[2] else _NO_ID, bits))
    # The kernel takes them in this order only (posix_acl_valid).
    rows = sorted(packed)
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", tag, bits, who) for tag, who, bits in rows)
