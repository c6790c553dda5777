"""A layer's tar stream: paths with all that a layer can hold, in pax form as mksquashfs reads it."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

from capsulekit.errors import CapsulekitError
from capsulekit.image.survey import shown
from capsulekit.rootfs.hybrid import forget

# Names and attributes are bytes; the caller's locale must not decide how they are read.
ENCODING, ERRORS = "utf-8", "surrogateescape"
PIECE = 1 << 16
TYPES = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


class LayerTar:
    """Adds paths to a layer's stream; ``unpacked`` is how many bytes its files hold."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.unpacked = 0

    def add(
        self,
        path: bytes,
        status: os.stat_result,
        attributes: Mapping[str, bytes],
        *,
        target: bytes = b"",
        data: IO[bytes] | io.FileIO | None = None,
        size: int = 0,
    ) -> None:
        """Add a path as it is; ``target`` of a link, ``size`` bytes of ``data`` of a file. Raises CapsulekitError."""
        entry = self._entry(path, status, TYPES[stat.S_IFMT(status.st_mode)])
        entry.linkname = os.fsdecode(target)
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        # PAX says an attribute's value as text; bytes that are none are surrogates on the way.
        entry.pax_headers = {f"SCHILY.xattr.{key}": value.decode(ENCODING, ERRORS) for key, value in attributes.items()}
        entry.size = size
        try:
            self._tar.addfile(entry, data)
        except OSError as wrong:
            if wrong.errno is None:  # tarfile's own word for a file that ended early
                raise CapsulekitError(f"/{shown(path)} was cut short while it was read") from None
            raise
        self.unpacked += size
        forget(self._tar)

    def add_hard_link(self, path: bytes, status: os.stat_result, first: bytes) -> None:
        """Add one more name of a file that was added as ``first``."""
        entry = self._entry(path, status, tarfile.LNKTYPE)
        entry.linkname = os.fsdecode(first)
        self._tar.addfile(entry)
        forget(self._tar)

    def add_whiteout(self, path: bytes) -> None:
        """Add overlay's mark for a path that is deleted."""
        entry = tarfile.TarInfo(os.fsdecode(path))
        entry.type, entry.mode = tarfile.CHRTYPE, 0
        self._tar.addfile(entry)
        forget(self._tar)

    def _entry(self, path: bytes, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(os.fsdecode(path))
        entry.type, entry.mode = kind, stat.S_IMODE(status.st_mode)
        entry.uid, entry.gid = status.st_uid, status.st_gid
        # Whole seconds are what a layer keeps, of 32 bits without a sign.
        entry.mtime = min(max(status.st_mtime_ns // 10**9, 0), 0xFFFFFFFF)
        return entry


@contextmanager
def layer_tar(sink: IO[bytes]) -> Iterator[LayerTar]:
    """A stream of a layer's paths, written to ``sink``."""
    with tarfile.open(
        fileobj=sink, mode="w|", bufsize=PIECE, format=tarfile.PAX_FORMAT, encoding=ENCODING, errors=ERRORS
    ) as tar:
        tar.copybufsize = PIECE  # type: ignore[attr-defined]  # documented, but not known to the type checker
        yield LayerTar(tar)
        # What packs a layer may end at the end mark, before the padding; if it failed, its status says so.
        with suppress(BrokenPipeError):
            tar.close()
            sink.flush()
