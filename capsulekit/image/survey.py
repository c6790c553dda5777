"""A look at a tree before it is packed: how much there is, how new, and what a layer could not hold, by name."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError

# A path that is longer (bytes) could be opened by no program of the node.
PATH_MAX = 4095
MOUNTS = Path("/proc/self/mountinfo")
# What squashfs keeps, what the normaliser lists beside the layer, and what it drops.
ATTRIBUTES = re.compile(r"(user|security|trusted)\.[^=%]+|system\.posix_acl_(access|default)")


@dataclass(frozen=True)
class Survey:
    """What a tree holds: ``newest`` mtime (whole seconds since 1970), number of paths, ``size`` of all files (bytes).

    ``mounts`` are the paths where something else is mounted, or another subvolume starts; they were not looked into.
    """

    newest: int
    paths: int
    size: int
    mounts: tuple[str, ...]


@dataclass
class _Refused:
    """What is wrong with some paths: how many, and the first by name."""

    count: int = 0
    first: bytes = b""

    def add(self, path: bytes) -> None:
        self.first = min(self.first, path) if self.count else path
        self.count += 1


@dataclass
class _Walk:
    root: int
    device: int
    leave_out: frozenset[bytes]
    mounted: frozenset[bytes]
    newest: int = 0
    paths: int = 0
    size: int = 0
    mounts: list[bytes] = field(default_factory=list)
    refused: dict[tuple[str, str], _Refused] = field(default_factory=dict)


UNREADABLE = ("can't be read", "run the same command as root")
SOCKET = ("is a socket, which a layer can't be given", "programs make their sockets anew: remove those in the tree")
FIFO = ("is a fifo of several names, and a tar stream would make them several", "remove all names but one")
TOO_LONG = ("has a path that no program could open", f"shorten it to {PATH_MAX} bytes")
ATTRIBUTE = ("has an extended attribute that a layer can't hold", "see getfattr -d -m -, remove it with setfattr -x")


def survey(root: Path, leave_out: Collection[str] = ()) -> Survey:
    """Look at every path below ``root``; links are not followed, and the folders ``leave_out`` not entered.

    Raises CapsulekitError that names what can't be stored or read, one kind at a time.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        gone = frozenset(os.fsencode(path) for path in leave_out)
        walk = _Walk(fd, os.fstat(fd).st_dev, gone, frozenset(_mounts_below(os.fsencode(root.resolve()))))
        todo = [b""]
        while todo:
            todo.extend(_folder(walk, todo.pop()))
    finally:
        os.close(fd)
    for (what, hint), refused in walk.refused.items():
        more = f" (and {refused.count - 1} more)" if refused.count > 1 else ""
        raise CapsulekitError(f"/{shown(refused.first)}{more} in {root} {what}", hint=hint)
    return Survey(walk.newest, walk.paths, walk.size, tuple(os.fsdecode(path) for path in sorted(walk.mounts)))


def shown(path: bytes) -> str:
    """A path for people, on one line."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _folder(walk: _Walk, path: bytes) -> Iterator[bytes]:
    """Look at one folder; the folders in it that are to be looked at."""
    try:
        fd = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=walk.root)
    except PermissionError:
        _refuse(walk, UNREADABLE, path)
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                full = path + b"/" + name if path else name
                status = entry.stat(follow_symlinks=False)
                if _look(walk, fd, name, full, status) and stat.S_ISDIR(status.st_mode):
                    yield full
    finally:
        os.close(fd)


def _look(walk: _Walk, folder: int, name: bytes, path: bytes, status: os.stat_result) -> bool:
    """Note one path; whether it is to be looked into."""
    kind = stat.S_IFMT(status.st_mode)
    if path in walk.leave_out and kind == stat.S_IFDIR:
        return False
    if path in walk.mounted or (kind == stat.S_IFDIR and status.st_dev != walk.device):
        walk.mounts.append(path)
        return False
    walk.paths += 1
    walk.newest = max(walk.newest, status.st_mtime_ns // 1_000_000_000)
    if len(path) > PATH_MAX - len("/\0"):
        _refuse(walk, TOO_LONG, path)
        return False
    if kind == stat.S_IFREG:
        walk.size += status.st_size
        if not os.access(name, os.R_OK, dir_fd=folder, effective_ids=True, follow_symlinks=False):
            _refuse(walk, UNREADABLE, path)
    elif kind == stat.S_IFSOCK or (kind == stat.S_IFIFO and status.st_nlink > 1):
        _refuse(walk, SOCKET if kind == stat.S_IFSOCK else FIFO, path)
    if not all(ATTRIBUTES.fullmatch(attribute) for attribute in _attributes(folder, name)):
        _refuse(walk, ATTRIBUTE, path)
    return True


def _attributes(folder: int, name: bytes) -> list[str]:
    try:
        return os.listxattr(b"/proc/self/fd/%d/%s" % (folder, name), follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []  # a file system without any


def _refuse(walk: _Walk, why: tuple[str, str], path: bytes) -> None:
    walk.refused.setdefault(why, _Refused()).add(path)


def _mounts_below(root: bytes) -> Iterator[bytes]:
    """Where below ``root`` something is mounted, also of the same file system (proc_pid_mountinfo(5))."""
    start = root.rstrip(b"/") + b"/"
    for line in MOUNTS.read_bytes().split(b"\n")[:-1]:  # no other break, nor blank, is escaped in a name
        place = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4])
        if place.startswith(start) and place != start:
            yield place.removeprefix(start)
