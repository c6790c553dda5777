"""Mounting without a program, and paths that links can't lead astray: mount(2), umount2(2), openat2(2).

A tree that is edited is not to be trusted: what it calls ``proc`` may be a link to the machine's own files. A path in
it is opened as a descriptor that no link was followed for, and what is mounted goes on that descriptor.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# linux/mount.h
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
# umount2(2)
DETACH, NOFOLLOW = 2, 8
# linux/openat2.h; the call has this number on every architecture (include/uapi/asm-generic/unistd.h)
_OPENAT2 = 437
NO_MAGIC, NO_LINKS, BENEATH, IN_ROOT = 0x02, 0x04, 0x08, 0x10


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, path: str | bytes | Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return result


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError."""
    words = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(_libc().mount(*words), target)


def unmount(target: str | Path, flags: int = NOFOLLOW) -> None:
    """umount2(2), of a path that is no link; raises OSError (EBUSY where it is in use)."""
    _checked(_libc().umount2(os.fsencode(target), flags), target)


def open_inside(root: int, path: bytes, flags: int = os.O_PATH, *, follow: bool = False) -> int:
    """A descriptor of ``path`` below the folder ``root`` (a descriptor); the caller closes it.

    Without ``follow`` no link on the way is followed, the last one neither (OSError ELOOP); with it, links lead where
    they would for a program that has ``root`` as its "/". Raises OSError.
    """
    resolve = NO_MAGIC | (IN_ROOT if follow else BENEATH | NO_LINKS)
    how = _How(flags | os.O_CLOEXEC, 0, resolve)
    words = (ctypes.c_long(_OPENAT2), root, path.lstrip(b"/") or b".", ctypes.byref(how), ctypes.sizeof(how))
    return _checked(_libc().syscall(*words), path)


@contextmanager
def opened_inside(root: int, path: bytes, flags: int = os.O_PATH, *, follow: bool = False) -> Iterator[int]:
    """The same, closed at the end of the block."""
    fd = open_inside(root, path, flags, follow=follow)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def folder_fd(path: Path) -> Iterator[int]:
    """A descriptor of a folder to look things up in."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def by_fd(fd: int) -> str:
    """A path that is just this descriptor's, whatever its name leads to meanwhile."""
    return f"/proc/self/fd/{fd}"
