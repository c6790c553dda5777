"""RPM headers, in package files and in the rpm database (docs/manual/format.md and hregions.md of rpm's sources)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError

NAME, VERSION, RELEASE, EPOCH = 1000, 1001, 1002, 1003
INSTALLTIME, INSTALLTID = 1008, 1128
PROVIDENAME, PROVIDEVERSION = 1047, 1113
LICENSE, ARCH, DIRINDEXES, BASENAMES, DIRNAMES = 1014, 1022, 1116, 1117, 1118

INT32 = 4
TEXTS = (6, 8, 9)  # string, string array, translated string
MAGIC = b"\x8e\xad\xe8\x01\0\0\0\0"
LEAD = 96
# rpm's own limits (lib/header.c)
MAX_ENTRIES, MAX_DATA = 0xFFFF, 0x0FFFFFFF


class NoHeader(CapsulekitError):
    """The bytes are no RPM header."""


@dataclass(frozen=True)
class Entry:
    """One tag of a header: its type, the offset of its data in the whole blob, how many values."""

    kind: int
    offset: int
    count: int


class Header:
    """A header without its magic, as the rpm database keeps it; raises NoHeader."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        try:
            entries, size = struct.unpack_from(">II", blob)
            if entries > MAX_ENTRIES or size > MAX_DATA or len(blob) < 8 + 16 * entries + size:
                raise NoHeader("an RPM header is cut short")
            data = 8 + 16 * entries
            rows = struct.iter_unpack(">IIiI", blob[8:data])
            self._entries = {tag: Entry(kind, data + offset, count) for tag, kind, offset, count in rows}
        except struct.error:
            raise NoHeader("an RPM header is cut short") from None

    def texts(self, tag: int) -> list[str]:
        """The strings of a tag; none when the header lacks it."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind not in TEXTS:
            return []
        found, at = [], entry.offset
        for _ in range(entry.count if entry.kind != TEXTS[0] else 1):
            end = self.blob.find(b"\0", at)
            if end < 0:
                raise NoHeader("an RPM header is cut short")
            found.append(self.blob[at:end].decode("utf-8", "surrogateescape"))
            at = end + 1
        return found

    def numbers(self, tag: int) -> list[int]:
        """The 32-bit values of a tag; none when the header lacks it."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind != INT32:
            return []
        try:
            return list(struct.unpack_from(f">{entry.count}I", self.blob, entry.offset))
        except struct.error:
            raise NoHeader("an RPM header is cut short") from None

    def with_number(self, tag: int, value: int) -> Header:
        """The same header with every value of a tag set to ``value``; unchanged when it lacks the tag."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind != INT32:
            return self
        blob = bytearray(self.blob)
        for number in range(entry.count):
            struct.pack_into(">I", blob, entry.offset + 4 * number, value)
        return Header(bytes(blob))

    @property
    def name(self) -> str:
        """The package's name."""
        return next(iter(self.texts(NAME)), "")

    @property
    def version(self) -> str:
        """EPOCH:VERSION-RELEASE, the epoch only when it is not 0."""
        epoch = next(iter(self.numbers(EPOCH)), 0)
        version, release = (next(iter(self.texts(tag)), "") for tag in (VERSION, RELEASE))
        return f"{f'{epoch}:' if epoch else ''}{version}-{release}"

    @property
    def arch(self) -> str:
        """The architecture, empty for a public key that rpm keeps as a package."""
        return next(iter(self.texts(ARCH)), "")

    @property
    def licence(self) -> str:
        """What its packager says of the licence."""
        return next(iter(self.texts(LICENSE)), "")

    def provides(self) -> Iterator[tuple[str, str]]:
        """What it provides: name and version, which may be empty."""
        yield from zip(self.texts(PROVIDENAME), self.texts(PROVIDEVERSION), strict=True)

    def paths(self) -> Iterator[str]:
        """Absolute paths of its files, as the package spells them."""
        folders = self.texts(DIRNAMES)
        for name, number in zip(self.texts(BASENAMES), self.numbers(DIRINDEXES), strict=True):
            yield folders[number] + name


def package_header(path: Path) -> Header:
    """The header of a package file; raises NoHeader naming it."""
    try:
        with path.open("rb") as file:
            file.seek(LEAD)
            signature = _header(file)
            file.seek(-len(signature.blob) % 8, 1)  # the signature's header is padded
            return _header(file)
    except (NoHeader, IndexError, ValueError):
        raise NoHeader(f"{path}: not an RPM package") from None


def _header(file: IO[bytes]) -> Header:
    start = file.read(len(MAGIC) + 8)
    if not start.startswith(MAGIC) or len(start) < len(MAGIC) + 8:
        raise NoHeader("no RPM header")
    entries, size = struct.unpack(">II", start[len(MAGIC) :])
    if entries > MAX_ENTRIES or size > MAX_DATA:
        raise NoHeader("no RPM header")
    return Header(start[len(MAGIC) :] + file.read(16 * entries + size))
