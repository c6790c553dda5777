"""Files written so that a crash leaves the old or the new one: write beside, fsync, rename."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError

CHUNK = 1 << 20


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A file that appears under ``path`` only when the block ends well; otherwise nothing is left behind."""
    try:
        fd, name = _part_of(path)
    except OSError as error:
        # The user asked for this file, not for the one beside it.
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    try:
        with os.fdopen(fd, "wb") as out:
            yield out
            out.flush()
            os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def _part_of(path: Path) -> tuple[int, str]:
    """A file beside ``path`` to write to: its descriptor, which holds a lock for as long as we live, and its name."""
    while True:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        _try_lock(fd)
        if os.fstat(fd).st_nlink:
            return fd, name
        os.close(fd)  # remove_parts was quicker than our lock


def remove_parts(path: Path) -> None:
    """Remove what atomic_file has left beside ``path`` where it was killed: nobody holds its lock any more."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError), part.open("rb") as file:
            if _try_lock(file.fileno()):
                part.unlink()


def _try_lock(fd: int) -> bool:
    """Whether the file is ours now: not where somebody else holds it, nor where a file system knows no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def atomic_write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` in one step."""
    with atomic_file(path, mode) as out:
        out.write(data)


def read_bounded(path: Path, most: int) -> bytes:
    """A regular file's bytes, at most ``most`` and one more: whoever asks refuses what is longer.

    Raises CapsulekitError for what is no file, or can't be read; a fifo in the file's place does not hang.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CapsulekitError(f"{path} is not a file")
            return file.read(most + 1)
    except OSError as wrong:
        raise CapsulekitError(f"can't read {path}: {wrong.strerror}") from wrong


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on ``path`` (made if missing); waits for other holders. Freed when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
