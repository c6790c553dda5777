"""The list of entries an initramfs is made of, and packing it; there is no staging folder."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import BinaryIO

import zstandard

from initramfs_builder import cpio
from initramfs_builder.cpio import Entry, Sink
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.tree import Found, Tree

# Past level 19 zstd's window can grow to 128 MiB, which is what the kernel takes at most.
LEVEL_MAX = 19
# zstd's bytes differ between none and some workers, but not between numbers of workers: never left to the core count.
WORKERS = 2


@dataclass(frozen=True)
class Report:
    """What an assembled initramfs holds: entries, bytes unpacked (the cpio) and packed (the file), firmware missing.

    ``firmware_missing`` lists files that modules name and the kernel tree does not have; most never matter.
    """

    entries: int
    unpacked: int
    packed: int
    firmware_missing: tuple[str, ...] = ()


class Archive:
    """Entries by path. Adding the same thing twice is fine, adding something else under a taken path is an error."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def add(self, entry: Entry) -> None:
        """Add an entry; its path is taken by its merged-/usr name. Raises CapsulekitError when two things collide."""
        known = self._entries.setdefault(entry.path, entry)
        if known != entry:
            raise CapsulekitError(f"the archive would hold two different things at {entry.path}")

    def add_found(self, found: Found) -> None:
        """Add a file or folder of a tree and the links that led to it.

        Permissions are 0755 or 0644, so that the umask of whoever extracted the packages leaves no trace.
        """
        for link, target in found.links.items():
            self.add(cpio.symlink(link, target))
        mode = found.host.stat().st_mode
        if stat.S_ISDIR(mode):
            self.add(cpio.directory(found.path))
        elif stat.S_ISREG(mode):
            self.add(cpio.regular(found.path, found.host, 0o755 if mode & 0o111 else 0o644))
        else:
            raise CapsulekitError(f"{found.host} is neither a file nor a folder")

    def add_path(self, tree: Tree, path: str) -> None:
        """Add a path of a tree, a folder with all it holds. Raises CapsulekitError when it is not there."""
        found = tree.resolve(path)
        if found is None:
            raise CapsulekitError(f"{path} is not in {tree.root}", hint="is the package that holds it in the recipe?")
        self.add_found(found)
        if found.host.is_dir():
            for name in tree.listing(found.path):
                self.add_path(tree, f"{found.path}/{name}")

    def command(self, name: str) -> bool:
        """Whether a command of this name is in the archive's PATH (/usr/sbin and /usr/bin)."""
        return any(f"{folder}/{name}" in self._entries for folder in ("usr/bin", "usr/sbin"))

    def entries(self) -> list[Entry]:
        """All entries, parents first."""
        return cpio.with_parents(self._entries.values())


class _Counted:
    """Counts the bytes on their way out."""

    def __init__(self, out: Sink) -> None:
        self.out = out
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self.out.write(data)
        self.size += len(data)
        return len(data)


def pack(out: BinaryIO, archive: Archive, mtime: int, level: int, firmware_missing: tuple[str, ...] = ()) -> Report:
    """Write the archive as one zstd frame that the kernel can unpack, padded to 4 bytes so that more can follow.

    ``mtime`` is in seconds since the epoch, ``level`` zstd's (1 to 19). Raises CapsulekitError, also on a full disk.
    """
    if not 1 <= level <= LEVEL_MAX:
        raise CapsulekitError(f"zstd level {level} is not within 1 to {LEVEL_MAX}, the kernel may refuse its window")
    counted = _Counted(out)
    try:
        entries = archive.entries()
        size = cpio.archive_size(entries)
        compressor = zstandard.ZstdCompressor(level=level, threads=WORKERS, write_checksum=True)
        with compressor.stream_writer(counted, size=size, closefd=False) as frame:  # type: ignore[arg-type]
            written = cpio.write_cpio(frame, entries, mtime)
        counted.write(bytes(-counted.size % cpio.ALIGNMENT))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CapsulekitError(f"could not write the initramfs: {error.strerror}{where}") from error
    return Report(written.entries, written.size, counted.size, firmware_missing)
