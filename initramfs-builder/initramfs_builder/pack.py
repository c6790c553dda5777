"""Packing the entries of an initramfs: what is stored as it is, then compressed frames cut where an entry ends.

The kernel unpacks archives (each at a multiple of 4 bytes) and compressed streams one after another, and a stream may
end wherever an entry ends (init/initramfs.c). So an image is up to three parts: the microcode, which the kernel reads
before it can unpack anything; what is compressed already (modules, firmware), which takes its small size in the node's
memory too; and all the rest in compressed frames, each of which is kept by its content and made again only when
something in it has changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO

from initramfs_builder import cpio
from initramfs_builder.archive import Archive
from initramfs_builder.compress import LEVEL_MAX, ZSTD, Compression
from initramfs_builder.cpio import Entry, Sink, Slice
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.store import Digested, Store, passing

COMPRESSED = (".gz", ".xz", ".zst")
# Bytes of entries after which a frame ends: large enough to compress as well as one frame, small enough to be worth
# keeping apart.
FRAME = 8 << 20
# Folders of less than this share a frame.
SMALL = 1 << 20
THREADS = min(os.cpu_count() or 1, 8)


@dataclass(frozen=True)
class Report:
    """What an assembled initramfs holds.

    Entries, bytes unpacked (all of the cpio) and packed (the file). ``missing``: (module, firmware it names that the
    image has not); most never matter. ``remarks``: what the author should know. ``record``: see record.py.
    """

    entries: int
    unpacked: int
    packed: int
    missing: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    record: bytes = b""


@dataclass(frozen=True)
class Packing:
    """How an image is packed.

    ``mtime`` is in seconds since the epoch, ``level`` zstd's (1 to 19; other compressions take it up to 9), ``early``
    the entries the kernel reads first. ``store`` keeps frames between builds; the bytes do not depend on it.
    """

    mtime: int
    level: int
    compression: Compression = ZSTD
    store: Store | None = None
    early: tuple[Entry, ...] = field(default=())


def pack(out: BinaryIO, archive: Archive, packing: Packing) -> Report:
    """Write the image, padded to 4 bytes so that more can follow. Raises CapsulekitError, also on a full disk."""
    check_level(packing.level)
    entries = archive.entries()
    compressed = [entry.path for entry in entries if entry.path.endswith(COMPRESSED)]
    known = {*compressed, *(folder for path in compressed for folder in cpio.parents(path))}
    stored = [entry for entry in entries if entry.path in known]
    rest = [entry for entry in entries if entry.path not in known]
    counted = _Counted(out)
    count = unpacked = 0
    try:
        for part in (cpio.with_parents(packing.early), stored):
            if part:
                written = cpio.write_cpio(counted, part, packing.mtime)
                count, unpacked = count + written.entries, unpacked + written.size
        with nullcontext(packing.store) if packing.store else passing() as store:
            for frame, size in _frames(rest, known, packing, store):
                unpacked += size
                cpio.copy(counted, frame)
        counted.write(bytes(-counted.size % cpio.ALIGNMENT))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CapsulekitError(f"could not write the initramfs: {error.strerror}{where}") from error
    return Report(count + len(rest), unpacked, counted.size)


class _Counted:
    """Counts the bytes on their way out."""

    def __init__(self, out: Sink) -> None:
        self.out, self.size = out, 0

    def write(self, data: bytes, /) -> int:
        self.out.write(data)
        self.size += len(data)
        return len(data)


def check_level(level: int) -> None:
    """Raises CapsulekitError for a compression level whose streams the kernel may refuse."""
    if not 1 <= level <= LEVEL_MAX:
        raise CapsulekitError(f"zstd level {level} is not within 1 to {LEVEL_MAX}, the kernel may refuse its window")


def _frames(rest: Sequence[Entry], known: set[str], packing: Packing, store: Store) -> Iterator[tuple[Slice, int]]:
    """Each compressed frame, and the bytes it unpacks to. ``known`` are the paths of the parts before."""
    frames = list(cut(rest))
    jobs = []
    before = set(known)
    for number, frame in enumerate(frames, start=1):
        jobs.append((frame, frozenset(before), number == len(frames)))
        before.update(entry.path for entry in frame)
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(lambda job: _frame(job[0], job[1], job[2], packing, store), jobs)


def _frame(
    entries: Sequence[Entry], before: Iterable[str], last: bool, packing: Packing, store: Store
) -> tuple[Slice, int]:
    def write(out: Sink | None) -> Digested:
        digested = Digested(out)
        cpio.write_cpio(digested, entries, packing.mtime, before=before, trailer=last)
        return digested

    plain = write(None)
    made_of = f"frame {packing.compression.identity(packing.level)} {plain.digest.hexdigest()}"
    key = hashlib.sha256(made_of.encode()).hexdigest()

    def compress(out: Sink) -> None:
        with packing.compression.stream(out, packing.level, plain.size) as stream:
            again = write(stream)
        if again.digest.digest() != plain.digest.digest():
            raise CapsulekitError(f"a file changed while it was read, among {entries[0].path} to {entries[-1].path}")

    return store.get(key) or store.make(key, compress), plain.size


def cut(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """The entries in frames, in their order: a large folder has frames of its own, small ones share one.

    Where frames end depends on the entries alone.
    """
    frame: list[Entry] = []
    size = 0
    for _, members in groupby(entries, key=_folder):
        group = [(entry, cpio.entry_size(entry)) for entry in members]
        large = sum(one for _, one in group) >= SMALL
        if frame and (large or size >= SMALL):
            yield frame
            frame, size = [], 0
        for entry, one in group:
            if frame and size + one > FRAME:
                yield frame
                frame, size = [], 0
            frame.append(entry)
            size += one
    if frame:
        yield frame


def _folder(entry: Entry) -> str:
    """The folder by which entries are grouped: usr/bin, usr/lib/firmware, …"""
    parts = entry.path.split("/")
    return "/".join(parts[: 3 if parts[:2] == ["usr", "lib"] else 2])
