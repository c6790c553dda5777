"""The parts of an ELF file that the loader reads: program headers, the dynamic section, notes. Format: elf(5).

Read by hand, because a general reader takes ten times as long for the few numbers that are wanted, and because every
number in a file may lie: whatever leads out of it raises ValueError or struct.error, never anything else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

MAGIC = b"\x7fELF"
BYTE_ORDERS = {1: "<", 2: ">"}
# Class → its bits, the header (e_machine, e_phoff, e_phentsize, e_phnum), a program header, a dynamic entry.
LAYOUTS = {1: (32, "18xH8xI10xHH", "IIIIIII", "iI"), 2: (64, "18xH12xQ14xHH", "IIQQQQQQ", "qQ")}
# The machines whose libraries have a folder of their own (psABI numbers, names as in elf.h).
MACHINES = {
    3: "EM_386", 62: "EM_X86_64", 183: "EM_AARCH64", 40: "EM_ARM", 21: "EM_PPC64", 243: "EM_RISCV", 22: "EM_S390",
}  # fmt: skip
LOAD, DYNAMIC, INTERP, NOTE = 1, 2, 3, 4
DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_RPATH, DT_RUNPATH = 1, 5, 10, 14, 15, 29
HEADER_MIN, HEADER_MAX = 52, 64  # bytes
# No loader takes more; a number beyond it is damage. All parts together, the dynamic section, a name, in bytes.
PART_MAX = 64 << 20
DYNAMIC_MAX = 1 << 20
NAME_MAX = 4096
FILE_MAX = 1 << 40


class ElfFile:
    """An open ELF file; raises ValueError or struct.error when it is damaged."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = PART_MAX
        head = self._at(0, HEADER_MAX)
        if len(head) < HEADER_MIN or head[:4] != MAGIC or head[4] not in LAYOUTS or head[5] not in BYTE_ORDERS:
            raise ValueError("its header is unknown")
        self.order = BYTE_ORDERS[head[5]]
        self.bits, header, self._segment, self._entry = LAYOUTS[head[4]]
        machine, start, size, count = struct.unpack_from(self.order + header, head)
        self.machine = MACHINES.get(machine, str(machine))
        layout = struct.Struct(self.order + self._segment)
        if count and size < layout.size:
            raise ValueError("its program headers are too short")
        table = self._at(start, size * count)
        self._segments = [self._fields(layout.unpack_from(table, size * number)) for number in range(count)]

    @property
    def interpreter(self) -> str | None:
        """What PT_INTERP says."""
        for kind, offset, _, size, _ in self._segments:
            if kind == INTERP:
                return self._at(offset, size).rstrip(b"\0").decode("utf-8", "surrogateescape")
        return None

    def notes(self) -> Iterator[tuple[bytes, int]]:
        """Each segment of notes: its bytes and its alignment."""
        for kind, offset, _, size, align in self._segments:
            if kind == NOTE:
                yield self._at(offset, size), 8 if align == 8 else 4

    def dynamic(self) -> tuple[dict[int, list[int]], bytes]:
        """The dynamic section, tag → values in their order, and the table of names that some of them point into."""
        tags: dict[int, list[int]] = {}
        for kind, offset, _, size, _ in self._segments:
            if kind == DYNAMIC:
                if size > DYNAMIC_MAX:
                    raise ValueError(f"its dynamic section has {size} bytes")
                entry = struct.Struct(self.order + self._entry)
                data = self._at(offset, size - size % entry.size)
                for tag, value in entry.iter_unpack(data):
                    if tag == 0:
                        break
                    tags.setdefault(tag, []).append(value)
        if DT_STRTAB not in tags or DT_STRSZ not in tags:
            return tags, b""
        return tags, self._at(self._offset(tags[DT_STRTAB][0]), tags[DT_STRSZ][0])

    def _offset(self, address: int) -> int:
        """Where in the file lies what will be at an address."""
        for kind, offset, start, size, _ in self._segments:
            if kind == LOAD and start <= address < start + size:
                return offset + address - start
        raise ValueError(f"nothing of it is loaded at {address:#x}")

    def _fields(self, values: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """Type, offset, address, size in the file, alignment."""
        if self.bits == 32:
            kind, offset, address, _, size, _, _ = values
            return kind, offset, address, size, 4
        kind, _, offset, address, _, size, _, align = values
        return kind, offset, address, size, align

    def _at(self, offset: int, size: int) -> bytes:
        self._left -= size
        if self._left < 0 or offset > FILE_MAX:
            raise ValueError(f"it says that a part of {size} bytes begins at byte {offset}")
        self._stream.seek(offset)
        data = self._stream.read(size)
        if len(data) != size and (offset or size > HEADER_MAX):
            raise ValueError("it is cut short")
        return data


def name_at(table: bytes, offset: int) -> str:
    """The name at a place of a table; raises ValueError when there is none, or no end of it near."""
    end = table.find(b"\0", offset, offset + NAME_MAX)
    if end < 0:
        raise ValueError("a name lies outside its table")
    return table[offset:end].decode("utf-8", "surrogateescape")
