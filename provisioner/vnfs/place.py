"""Putting files into the store: each complete or not there, and all of them taken away again when a step fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_file, atomic_write, fsync_dir, sha256_file

if TYPE_CHECKING:
    from provisioner.vnfs.store import VnfsStore

PUBLIC, PRIVATE = 0o644, 0o600
# In the store while a command changes it.
MARK = ".unfinished"


class Placing:
    """What one command has put into the store so far; use it inside ``placing``, with the store's lock held."""

    def __init__(self, store: VnfsStore) -> None:
        self._store = store
        # Files, then folders, in the order in which a command that fails takes them away.
        self._files: list[Path] = []
        self._folders: list[Path] = []
        self._generations: list[tuple[str, str]] = []

    def blob(self, sha256: str, mode: int, copy: Callable[[IO[bytes]], str], what: str) -> None:
        """A member under its digest; ``copy`` writes it and returns the hex sha256 of what it wrote.

        One that is there and whole is kept; bytes that are public once stay public. Raises TrustError when what is
        written is not that member.
        """
        blob = self._store.blob(sha256)
        if blob.is_file() and sha256_file(blob) == sha256:
            if mode == PUBLIC:
                blob.chmod(PUBLIC)
            return
        if not blob.parent.is_dir():
            blob.parent.mkdir(parents=True)
            fsync_dir(blob.parent.parent)
        self._files.append(blob)
        with atomic_file(blob, mode) as out:
            if copy(out) != sha256:
                raise TrustError(f"{what} changed while it was imported")
        if mode == PRIVATE and blob.stat().st_mode & 0o007:
            # The mode is what keeps a private member from being sent to anybody who asks.
            raise CapsulekitError(
                f"{what} is private, and the file system of {self._store.paths.state} lets others read it",
                hint="keep the state folder on a file system with owners and modes",
            )

    def generation(self, name: str, identity: str, texts: Mapping[str, bytes], *, secret: frozenset[str]) -> None:
        """A generation's folder with its small files; those in ``secret`` are readable by their owner alone."""
        home, folder = self._store.home(name), self._store.generation(name, identity)
        self._generations.append((name, identity))
        for path in (folder, home):
            if not path.exists():
                self._folders.append(path)
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in texts.items():
            if not (folder / file).exists():
                self._files.append(folder / file)
            atomic_write(folder / file, data, PRIVATE if file in secret else PUBLIC)
        fsync_dir(home)
        fsync_dir(home.parent)

    def recorded(self) -> bool:
        """Whether the registry names any of it, or can't be asked: what went wrong did so after it was recorded.

        A signal may come, or a connection be lost, just after the transaction was committed.
        """
        try:
            return any(self._store.registry.has_generation(*one) for one in self._generations)
        except CapsulekitError:  # nothing is lost when all of it stays: the next command looks again
            return True

    def undo(self) -> None:
        """Take it all away."""
        for path in self._files:
            path.unlink(missing_ok=True)
        for path in self._folders:
            if path.is_dir():
                path.rmdir()


@contextmanager
def placing(store: VnfsStore, doing: str) -> Iterator[Placing]:
    """Whatever is placed in the block is taken away when it fails; ``doing`` completes "can't …" for a full disk.

    The block ends with what makes it visible (the registry's row): at its end, what an earlier command that was killed
    had placed is taken away. The store's lock is held.
    """
    placed = Placing(store)
    with unfinished(store) as mark:
        sweep_parts(store)
        try:
            yield placed
        except BaseException as wrong:
            if not placed.recorded():
                placed.undo()
                mark.undone = True
            if isinstance(wrong, OSError):
                raise CapsulekitError(f"can't {doing}: {wrong.strerror}: {wrong.filename or 'the store'}") from wrong
            raise


@dataclass
class Mark:
    """Of a command at work; ``undone``: it failed, and has taken away all that it had placed."""

    undone: bool = False


@contextmanager
def unfinished(store: VnfsStore) -> Iterator[Mark]:
    """While the block runs, a mark in the store says that a command works on it; the next one tidies up after it.

    Only where the mark was there before: to look through all of the store at every command would cost too much.
    """
    path, mark = store.paths.state / "vnfs" / MARK, Mark()
    left_over = path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield mark
    except BaseException:
        if mark.undone and not left_over:
            path.unlink(missing_ok=True)
        raise
    if left_over:
        from provisioner.vnfs.remove import free_unused

        free_unused(store)
    path.unlink(missing_ok=True)


def sweep_parts(store: VnfsStore) -> None:
    """Unfinished files of commands that were killed; we hold the lock, so nobody is writing them."""
    for pattern in ("blobs/*/.*.part", "vnfs/*/*/.*.part"):
        for stale in store.paths.state.glob(pattern):
            stale.unlink(missing_ok=True)
    for work in store.paths.state.glob("vnfs/*/.layer-*"):
        shutil.rmtree(work, ignore_errors=True)
