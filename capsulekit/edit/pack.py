"""An edit's changes as one more layer: what was written, as a tar stream, becomes a squashfs and its list of ACLs."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capsulekit.edit import acls, syscalls
from capsulekit.edit.changes import Changes, describe
from capsulekit.edit.clean import MAX_FIXED, Cleaner
from capsulekit.edit.stack import UPPER, below
from capsulekit.edit.tarout import LayerTar, layer_tar
from capsulekit.edit.walk import FILE, OPAQUE, WHITEOUT, Item, attributes, open_file, walk
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, sha256_file
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.rootfs.table import ANY
from capsulekit.run import DiskFull

LEVEL = 3  # mksquashfs' level for zstd: an edit is packed while somebody waits
BLOCK = 1 << 20
# How much of an edit is compressed to estimate what it takes (bytes): so much, so often, at most so many times.
SAMPLE, SAMPLED_EVERY, MOST_SAMPLES = 64 << 10, 1 << 20, 1000


@dataclass(frozen=True)
class Packed:
    """A layer that was written: bytes and hex sha256 of its file, bytes of what it holds; the ACL list's file or None.

    ``layer`` is None when nothing was changed: then nothing was written.
    """

    layer: Path | None
    size: int
    sha256: str
    unpacked: int
    acl: Path | None
    changes: Changes


def pack_changes(
    folder: Path,
    layer_out: Path,
    acl_out: Path,
    *,
    family: str = ANY,
    level: int = LEVEL,
    leave_out: Collection[str] = (),
) -> Packed:
    """Write what a frozen edit changed to the squashfs ``layer_out``, and its ACLs, where it has any, to ``acl_out``.

    ``family`` is that of the capsule's packages; ``leave_out`` are paths that are not stored, nor what is below them
    (an adopted kernel's, see modules.settle). Times stay as the editor made them; what Cleaner knows is not stored.
    Raises CapsulekitError naming what can't be stored, DiskFull saying about how many bytes are missing: nothing is
    left then, and the edit is as it was.
    """
    from capsulekit.edit.session import acls_of

    lists = acls.effective(acls_of(folder))
    with below(folder) as view:
        told = walk(folder / UPPER, view, Cleaner(family), leave_out)
        changed = describe(folder, view, told)
        if changed.empty:
            return Packed(None, 0, "", 0, None, changed)
        stream = _Stream(Cleaner(family), lists)
        layer_out.unlink(missing_ok=True)  # of a process that was killed
        with (
            syscalls.folder_fd(folder / UPPER) as upper,
            room_told(layer_out, lambda: estimated(upper, told.items, level)),
            layer_from_tar(layer_out, 0, level, keep_times=True) as sink,
            layer_tar(sink) as tar,
        ):
            for item in told.items:
                stream.add(tar, upper, item)
    return finished(layer_out, acl_out, tar.unpacked, stream.acls, changed)


def finished(
    layer_out: Path, acl_out: Path, unpacked: int, held: list[tuple[bytes, str, bytes]], changed: Changes
) -> Packed:
    """What is known of a layer that was written; its ACL list is written too."""
    if held:
        try:
            atomic_write(acl_out, acls.listed(held), 0o600)
        except OSError as wrong:
            layer_out.unlink(missing_ok=True)
            raise CapsulekitError(f"can't write {acl_out}: {wrong.strerror}") from wrong
    size = layer_out.stat().st_size
    return Packed(layer_out, size, sha256_file(layer_out), unpacked, acl_out if held else None, changed)


class _Stream:
    """Adds an edit's paths to a layer; ``acls`` collects the lines of its ACL list."""

    def __init__(self, cleaner: Cleaner, lists: acls.Acls) -> None:
        self._cleaner, self._lists = cleaner, lists
        self.acls: list[tuple[bytes, str, bytes]] = []

    def add(self, tar: LayerTar, upper: int, item: Item) -> None:
        """Add one path of the upper folder (a descriptor)."""
        if item.kind == WHITEOUT:
            tar.add_whiteout(item.path)
            return
        status = os.stat(item.path, dir_fd=upper, follow_symlinks=False)
        held = attributes(upper, item.path)
        self.acls += acl_lines(item.path, status.st_mode, held, self._lists)
        kept = {key: value for key, value in held.items() if not key.startswith("system.")}
        if item.opaque:
            kept[OPAQUE] = b"y"
        if item.hard:
            tar.add_hard_link(item.path, status, item.hard)
        elif item.cleaned:
            tar.add(item.path, status, kept, data=self._fixed(upper, item, status.st_mode), size=item.size)
        elif item.kind == FILE:
            with open_file(upper, item.path) as file:
                tar.add(item.path, status, kept, data=file, size=status.st_size)
        else:
            target = os.readlink(item.path, dir_fd=upper) if stat.S_ISLNK(status.st_mode) else b""
            tar.add(item.path, status, kept, target=target)

    def _fixed(self, upper: int, item: Item, mode: int) -> IO[bytes]:
        with open_file(upper, item.path) as file:
            return io.BytesIO(self._cleaner.fix(os.fsdecode(item.path), mode)(file.read(MAX_FIXED)))


def acl_lines(path: bytes, mode: int, held: dict[str, bytes], lists: acls.Acls) -> list[tuple[bytes, str, bytes]]:
    """The lines of a layer's ACL list for one path: where it is not what the lists below say already."""
    if stat.S_ISLNK(mode):
        return []
    lines = []
    for kind, key in acls.ATTRIBUTES.items():
        if kind == acls.DEFAULT and not stat.S_ISDIR(mode):
            continue
        mine = held.get(key, b"")
        said = mine or (acls.minimal(mode) if kind == acls.ACCESS else b"")
        if (mine and (path, kind) not in lists) or lists.get((path, kind), said) != said:
            lines.append((path, kind, said))
    return lines


@contextmanager
def room_told(out: Path, needed: Callable[[], int]) -> Iterator[None]:
    """A full disk is said with what is missing; ``needed`` estimates, then only, how many bytes the layer takes."""
    room = os.statvfs(out.parent)
    free = room.f_bavail * room.f_frsize
    try:
        yield
    except DiskFull:
        missing = max(needed() - free, BLOCK)
        raise DiskFull(
            f"the disk is full: about {missing} more bytes are needed in {out.parent} to pack the changes",
            hint="free them and try again: nothing of the edit is lost",
        ) from None


def estimated(upper: int, items: Sequence[Item], level: int) -> int:
    """About how many bytes files of an upper folder (a descriptor) take in a layer: by compressing parts of them."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level)
    size = sum(item.size for item in items if not item.hard)
    every = max(SAMPLED_EVERY, size // MOST_SAMPLES)
    sampled, packed, skipped = 0, 0, every  # the first file counts
    for item in items:
        if item.kind != FILE or item.hard or item.cleaned:
            continue
        with open_file(upper, item.path) as file:
            for at in range(0, item.size, every):
                skipped += min(every, item.size - at)
                if skipped >= every:
                    file.seek(at)
                    part = file.read(SAMPLE)
                    sampled, packed, skipped = sampled + len(part), packed + len(compressor.compress(part)), 0
    return size * packed // sampled if sampled else size
