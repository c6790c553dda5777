"""The public members of the installed capsules as hard links in one folder: what transfer method nfs offers.

Never the store itself: a private member has no name below this folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from capsulekit.errors import CapsulekitError

DIGEST = re.compile(r"[0-9a-f]{64}")
WORLD_READ = 0o004


def offer(blobs: Path, folder: Path) -> int:
    """Bring ``folder`` in step with the public blobs below ``blobs``; how many links there are.

    A blob that became private, or went, loses its link. Raises CapsulekitError when links can't be made there.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    public = dict(_public(blobs))
    for entry in list(os.scandir(folder)):
        blob = public.get(entry.name)
        if blob is None or not _same(blob, entry.path):
            Path(entry.path).unlink(missing_ok=True)
        else:
            del public[entry.name]
    for name, blob in public.items():
        try:
            with suppress(FileExistsError, FileNotFoundError):  # another master was faster; or it went just now
                (folder / name).hardlink_to(blob)
        except OSError as wrong:
            raise CapsulekitError(
                f"can't link {name} into {folder}: {wrong.strerror}", hint="keep the state folder on one file system"
            ) from wrong
        _still_public(folder / name)
    return sum(1 for _ in os.scandir(folder))


def withdraw(folder: Path) -> None:
    """Offer nothing any more."""
    if folder.is_dir():
        for entry in list(os.scandir(folder)):
            Path(entry.path).unlink(missing_ok=True)


def _public(blobs: Path) -> Iterator[tuple[str, Path]]:
    """Every public member of the store by its digest; an unfinished one has another name."""
    for place in sorted(blobs.glob("[0-9a-f][0-9a-f]")):
        for entry in os.scandir(place):
            with suppress(FileNotFoundError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if DIGEST.fullmatch(entry.name) and stat.S_ISREG(mode) and mode & WORLD_READ:
                    yield entry.name, Path(entry.path)


def _same(blob: Path, link: str) -> bool:
    try:
        return os.path.samestat(blob.lstat(), Path(link).lstat())
    except FileNotFoundError:
        return False


def _still_public(link: Path) -> None:
    """A member may have become private between the look and the link."""
    with suppress(FileNotFoundError):
        if not link.lstat().st_mode & WORLD_READ:
            link.unlink()
