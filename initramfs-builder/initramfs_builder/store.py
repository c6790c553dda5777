"""Compressed bytes kept by what makes them, so that what was compressed once is not compressed again.

The folder may be removed at any time, and several builds may use it at once: a file gets its name only when it is
complete, and nothing is used before its digest, which closes the file, is found to hold. So nothing is forced to the
disk either: what a crash has cut short is found out and made again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from initramfs_builder.cpio import CHUNK, Sink, Slice

DIGEST_SIZE = hashlib.sha256().digest_size


class Store:
    """Results below ``folder``; what is not finished lies in ``scratch``, on the same file system."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch

    def get(self, key: str) -> Slice | None:
        """What was kept under a key (hex), checked just now; None when there is nothing, or nothing whole.

        A damaged file is left to "make", which replaces it: removed here, it might be what another build just made.
        """
        path = self._path(key)
        digest, tail = hashlib.sha256(), b""
        try:
            with path.open("rb") as file:
                while piece := file.read(CHUNK):
                    digest.update((tail + piece)[:-DIGEST_SIZE])
                    tail = (tail + piece)[-DIGEST_SIZE:]
                size = file.tell() - DIGEST_SIZE
        except FileNotFoundError:
            return None
        return Slice(path, size) if tail == digest.digest() else None

    def make(self, key: str, write: Callable[[Sink], object]) -> Slice:
        """Keep what ``write`` writes; whoever makes the same at the same time makes the same bytes."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.scratch, delete=False) as file:
            part = Path(file.name)
            try:
                digested = Digested(file)
                write(digested)
                file.write(digested.digest.digest())
                file.flush()
                part.rename(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        return Slice(path, digested.size)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key


class Digested:
    """Counts and digests (sha256) the bytes on their way to ``out``, or nowhere."""

    def __init__(self, out: Sink | None = None) -> None:
        self.out, self.size, self.digest = out, 0, hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        """Take the bytes."""
        if self.out is not None:
            self.out.write(data)
        self.size += len(data)
        self.digest.update(data)
        return len(data)


@contextmanager
def passing() -> Iterator[Store]:
    """A store that lives as long as the block: for one who keeps nothing."""
    with tempfile.TemporaryDirectory(prefix="capsulekit-") as folder:
        scratch = Path(folder, "tmp")
        scratch.mkdir()
        yield Store(Path(folder, "store"), scratch)
