"""Processor microcode in front of an image, where the kernel looks for it before it unpacks anything.

It must be in an uncompressed archive at the very start, under these two names (Documentation/arch/x86/microcode.rst).
Packages bring it as one file a processor: intel-ucode/FAMILY-MODEL-STEPPING, and amd-ucode/*.bin.
"""

from __future__ import annotations

import fnmatch
import struct
from collections.abc import Iterable, Iterator, Sequence

from initramfs_builder import cpio
from initramfs_builder.cpio import Entry
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.patterns import Patterns
from initramfs_builder.tree import Found, Tree

FOLDER = "kernel/x86/microcode"
AMD, FILLER, INTEL = (f"{FOLDER}/{name}" for name in ("AuthenticAMD.bin", "Filler", "GenuineIntel.bin"))
AMD_MAGIC = b"DMA\0"  # of a container, struct.pack("<I", 0x00414D44)
# Version, revision, date, processor, checksum, loader, flags, size of the data, whole size (all in bytes): Intel's
# Software Developer's Manual, volume 3, 9.11.1.
INTEL_HEADER = struct.Struct("<9I")
INTEL_OLD_SIZE = 2048  # when the header gives no size
INTEL_ALIGNMENT = 16  # of the update in memory (there, 9.11.6)


def early_entries(trees: Sequence[Tree], wanted: Patterns) -> tuple[Entry, ...]:
    """The entries to put first, none when no tree holds microcode that is wanted ("intel-ucode/06-55-*").

    An update that several files hold is taken once. Raises CapsulekitError when a file is no microcode.
    """
    amd = b"".join(_amd(found) for found in _files(trees, "amd-ucode", "*.bin", wanted))
    updates: dict[bytes, Found] = {}
    for found in _files(trees, "intel-ucode", "*", wanted):
        updates |= dict.fromkeys(_intel(found), found)
    for update, found in updates.items():
        if _sum(update):
            raise CapsulekitError(f"{found.host} holds damaged microcode: its words do not add up to 0")
    intel = b"".join(updates)
    entries = [cpio.regular(AMD, amd)] if amd else []
    if intel:
        entry = cpio.regular(INTEL, intel)
        before = [one for one in cpio.with_parents([*entries, cpio.regular(FILLER, b""), entry]) if one != entry]
        start = sum(map(cpio.entry_size, before)) + cpio.entry_size(entry) - len(intel)
        entries += [cpio.regular(FILLER, bytes(-start % INTEL_ALIGNMENT)), entry]
    return tuple(entries)


def _files(trees: Iterable[Tree], folder: str, pattern: str, wanted: Patterns) -> Iterator[Found]:
    """Files of the first tree that has the folder, by name."""
    for tree in trees:
        names = fnmatch.filter(tree.listing(f"usr/lib/firmware/{folder}"), pattern)
        for name in names:
            found = tree.resolve(f"usr/lib/firmware/{folder}/{name}")
            if found is not None and found.host.is_file() and wanted.takes(f"{folder}/{name}"):
                yield found
        if names:
            return


def _sum(update: bytes) -> int:
    """The sum of its 32-bit words, modulo 2^32; 0 when it is whole.

    Megabytes, so one large number is folded in half again and again: each word in 64 bits of it, with room to carry.
    """
    lanes = -(-len(update) // 8)
    number = int.from_bytes(update, "little")
    low = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * lanes, "little")
    number = (number & low) + (number >> 32 & low)
    while lanes > 1:
        lanes = -(-lanes // 2)
        number = (number & (1 << 64 * lanes) - 1) + (number >> 64 * lanes)
    return number & 0xFFFFFFFF


def _amd(found: Found) -> bytes:
    data = found.host.read_bytes()
    if not data.startswith(AMD_MAGIC):
        raise CapsulekitError(f"{found.host} is no microcode: it does not begin with {AMD_MAGIC!r}")
    return data


def _intel(found: Found) -> Iterator[bytes]:
    """The updates in a file."""
    data = found.host.read_bytes()
    at = 0
    while at < len(data):
        size = 0
        if len(data) - at >= INTEL_HEADER.size:
            version, *_, content, size = INTEL_HEADER.unpack_from(data, at)
            size = (size if content else INTEL_OLD_SIZE) if version == 1 else 0
        update = data[at : at + size]
        if not size or size % 4 or len(update) != size:
            raise CapsulekitError(f"{found.host} is no microcode, or damaged: byte {at} begins no whole update")
        yield update
        at += size
