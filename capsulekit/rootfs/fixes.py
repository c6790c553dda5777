"""What the normaliser's table does to a file's bytes: the part that varies is set, the rest stays as it is.

A fix takes the file's bytes and the build epoch (seconds since 1970) and returns the new bytes. A fresh-check takes the
first HEAD bytes of a cache and the epoch, and says whether the cache was made anew for that epoch.
"""

from __future__ import annotations

import hashlib
import re
import struct

from capsulekit.errors import CapsulekitError

HEAD = 64


def last_change(data: bytes, epoch: int) -> bytes:
    """/etc/shadow: the day of the last password change becomes the build's day (shadow(5), third field)."""
    day = str(epoch // 86400).encode()
    rows = [line.split(b":") for line in data.splitlines()]
    return b"".join(b":".join([*r[:2], day, *r[3:]]) + b"\n" for r in rows if len(r) > 3)


def mdadm(data: bytes, epoch: int) -> bytes:
    """mdadm.conf as Debian's mkconf makes it: its date and the builder's own arrays go. A file of an author's stays."""
    del epoch
    if b"auto-generated on" not in data:
        return data
    return re.sub(rb"(?m)^(?:# This configuration was auto-generated on .*|ARRAY .*)\n?", b"", data)


def initiator_name(data: bytes, epoch: int) -> bytes:
    """initiatorname.iscsi: Debian's start-up script makes a name at the first start when the file tells it to."""
    del data, epoch
    return b"GenerateName=yes\n"


def closed_wal(data: bytes, epoch: int) -> bytes:
    """The write-ahead log of a database that was closed well is empty; raises CapsulekitError when it holds data."""
    del epoch
    if data:
        raise CapsulekitError(
            "the rpm database was not closed: its write-ahead log holds changes",
            hint="run rpm --rebuilddb inside the root",
        )
    return b""


_JKS = struct.Struct(">III")
_CERTIFICATE = 2
# A Java key store ends with a keyed digest; stores of public certificates have this password everywhere.
_PASSWORD = "changeit".encode("utf-16-be")


def key_store(data: bytes, epoch: int) -> bytes:
    """A Java key store of certificates: each entry's date becomes the epoch, entries are sorted by their alias.

    Stores of another kind, with private keys or under another password, stay as they are.
    """
    if len(data) < _JKS.size + 20 or _JKS.unpack_from(data)[:2] != (0xFEEDFEED, 2):
        return data
    body, digest = data[:-20], data[-20:]
    if _store_digest(body) != digest:
        return data
    entries, at = {}, _JKS.size
    for _ in range(_JKS.unpack_from(data)[2]):
        tag, length = struct.unpack_from(">IH", body, at)
        if tag != _CERTIFICATE:
            return data
        date_at = at + 6 + length
        type_length = struct.unpack_from(">H", body, date_at + 8)[0]
        size_at = date_at + 10 + type_length
        end = size_at + 4 + int(struct.unpack_from(">I", body, size_at)[0])
        entries[body[at:date_at]] = struct.pack(">Q", epoch * 1000) + body[date_at + 8 : end]
        at = end
    made = body[: _JKS.size] + b"".join(head + rest for head, rest in sorted(entries.items()))
    return made + _store_digest(made)


def _store_digest(body: bytes) -> bytes:
    # SHA-1 is the format's own checksum (sun.security.provider.JavaKeyStore), not a protection.
    return hashlib.sha1(_PASSWORD + b"Mighty Aphrodite" + body, usedforsecurity=False).digest()


def unchecked_byte_code(head: bytes, epoch: int) -> bool:
    """Python byte code that holds its source's hash and is never checked against the source (PEP 552)."""
    del epoch
    return len(head) >= 8 and struct.unpack_from("<I", head, 4)[0] == 0b01


def font_cache(head: bytes, epoch: int) -> bool:
    """A fontconfig cache that was made when its folder had the epoch as time (struct _FcCache's checksum)."""
    words = struct.unpack(f"<{len(head) // 4}I", head[: len(head) // 4 * 4])
    # After magic, version, size, three offsets and a count: the words' places for pointers of 4 and of 8 bytes.
    return any(len(words) > at and words[at] == epoch for at in (7, 12))
