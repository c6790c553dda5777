"""Archive keys: which keys of a keyring vouch for an index, and each of them as ASCII armour for the lock."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.lock.model import Key
from capsulekit.run import CommandFailed, run

PUBLIC_KEY = 6
VALID = re.compile(r"^\[GNUPG:\] VALIDSIG (?:\S+ ){9}([0-9A-F]{40,64})$", re.MULTILINE)
ARMOUR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+\r?\n)*\r?\n(.*?)\r?\n=[^\n]*\n", re.DOTALL)


def read_keys(path: Path) -> list[Key]:
    """Every public key in a keyring file, binary or armoured; raises CapsulekitError when it is no keyring."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CapsulekitError(f"the keyring {path} cannot be read: {error.strerror}") from None
    blocks = [base64.b64decode(m[1]) for m in ARMOUR.finditer(data)] if data.startswith(b"-----") else [data]
    try:
        return [Key(_fingerprint(one), armour(one)) for block in blocks for one in _split(block)]
    except (IndexError, ValueError):
        raise CapsulekitError(f"{path} is no keyring", hint="it must hold OpenPGP public keys") from None


def vouching(index: Path, keyrings: Sequence[Path], keys: Sequence[Key]) -> list[Key]:
    """Those of ``keys`` that signed ``index`` (an InRelease file); raises TrustError when none did.

    ``keyrings`` are binary files with the same keys.
    """
    rings = [word for ring in keyrings for word in ("--keyring", str(ring))]
    try:
        said = run(["gpgv", "--status-fd", "1", *rings, index], purpose="see which key signed the package index")
    except CommandFailed as error:
        said = error.output  # one of several signatures is by a key that is not there: the others count
    signers = set(VALID.findall(said))
    found = [key for key in keys if key.fingerprint in signers]
    if not found:
        raise TrustError(f"{index.name}: no known key has signed this index")
    return found


def armour(data: bytes) -> str:
    """One key as ASCII armour (RFC 9580, 6.2)."""
    text = base64.b64encode(data).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    check = base64.b64encode(_crc24(data).to_bytes(3, "big")).decode()
    body = "\n".join(lines)
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}\n={check}\n-----END PGP PUBLIC KEY BLOCK-----\n"


def binary(keys: Sequence[Key]) -> bytes:
    """Keys of a lock as one binary keyring; raises CapsulekitError for a text that is not that key."""
    out = b""
    for key in keys:
        found = ARMOUR.search(key.text.encode())
        try:
            data = base64.b64decode(found[1]) if found else b""
            right = bool(data) and _fingerprint(data) == key.fingerprint
        except (IndexError, ValueError):
            right = False
        if not right:
            raise CapsulekitError(f"the lock's key {key.fingerprint} is damaged", hint="make the lock again")
        out += data
    return out


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = (crc << 1) ^ (0x1864CFB if crc & 0x800000 else 0)
    return crc & 0xFFFFFF


def _packets(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(tag, start, body start, end) of each OpenPGP packet (RFC 9580, 4.2); partial lengths do not occur in keys."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("not a packet")
        if head & 0x40:
            tag, first = head & 0x3F, data[at + 1]
            if first < 192:
                size, body = first, at + 2
            elif first < 224:
                size, body = ((first - 192) << 8) + data[at + 2] + 192, at + 3
            elif first == 255:
                size, body = int.from_bytes(data[at + 2 : at + 6], "big"), at + 6
            else:
                raise ValueError("partial length")
        else:
            tag, width = (head >> 2) & 0xF, 1 << (head & 3)
            if width == 8:
                raise ValueError("indeterminate length")
            size, body = int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width
        if body + size > len(data):
            raise ValueError("cut short")
        yield tag, at, body, body + size
        at = body + size


def _split(data: bytes) -> Iterator[bytes]:
    starts = [start for tag, start, _, _ in _packets(data) if tag == PUBLIC_KEY]
    if not starts:
        raise ValueError("no key")
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        yield data[start:end]


def _fingerprint(data: bytes) -> str:
    """Of the first packet, a version 4 key: sha1 over 0x99, its length and its body (RFC 9580, 5.5.4.2)."""
    tag, _, body, end = next(_packets(data))
    if tag != PUBLIC_KEY or data[body] != 4:
        raise ValueError("not a version 4 key")
    content = data[body:end]
    return hashlib.sha1(b"\x99" + len(content).to_bytes(2, "big") + content, usedforsecurity=False).hexdigest().upper()
