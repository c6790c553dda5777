"""What a kernel module says of itself: its .modinfo section, read by hand.

A section's place is all that is wanted, of hundreds of files: a general reader of ELF takes fifty times as long.
Format: elf(5); modules come as .ko, or as .ko.xz, .ko.zst, .ko.gz.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from initramfs_builder.errors import CapsulekitError
from initramfs_builder.modulebytes import unpacked

# e_shoff, e_shentsize, e_shnum, e_shstrndx at their places in the header; then sh_name, sh_offset, sh_size.
LAYOUTS = {1: ("32xI10xHHH", "I12xII"), 2: ("40xQ10xHHH", "I20xQQ")}
BYTE_ORDERS = {1: "<", 2: ">"}
SECTION = b".modinfo"
SECTION_MAX = 1 << 20  # bytes; the largest there are have a tenth of it


def read_modinfo(path: Path) -> list[tuple[str, str]]:
    """The (key, value) pairs of a module's .modinfo section. Raises CapsulekitError when it is no kernel module."""
    return parse_modinfo(unpacked(path.read_bytes(), str(path)), str(path))


def parse_modinfo(data: bytes, name: str) -> list[tuple[str, str]]:
    """The same of a module's bytes, uncompressed; errors say its ``name``."""
    try:
        section = _section(data)
    except (struct.error, KeyError, ValueError, IndexError, OverflowError) as error:
        raise CapsulekitError(f"{name} is not a kernel module: {error or 'it is no ELF file'}") from error
    pairs = (os.fsdecode(item).partition("=") for item in section.split(b"\0") if item)
    return [(key, value) for key, _, value in pairs]


def _section(data: bytes) -> bytes:
    """The content of .modinfo, empty when there is none."""
    if data[:4] != b"\x7fELF":
        raise ValueError("it is no ELF file")
    order, (header, section) = BYTE_ORDERS[data[5]], LAYOUTS[data[4]]
    table, size, count, names = struct.unpack_from(order + header, data)
    sections = [struct.unpack_from(order + section, data, table + size * number) for number in range(count)]
    if not sections:
        return b""
    _, start, length = sections[names]
    titles = data[start : start + length]
    for title, start, length in sections:
        if titles[title : title + len(SECTION) + 1] == SECTION + b"\0":
            if start + length > len(data):
                raise ValueError("it is cut short")
            if length > SECTION_MAX:
                raise ValueError(f"its .modinfo has {length} bytes")
            return data[start : start + length]
    return b""
