"""What an edit's upper folder says beside what is below it: every path that differs, as it is to be stored.

Overlay copies a whole file (and its folders) up for the least of changes, and for none: what is the same below is no
change. What is below is a read-only view of the layers (stack.below); of files that differ in nothing else than maybe
their bytes, the bytes are compared.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from capsulekit.edit.clean import KEEP, MAX_FIXED, Cleaner
from capsulekit.edit.furnish import POLICY, POLICY_FILE
from capsulekit.errors import CapsulekitError
from capsulekit.files import CHUNK
from capsulekit.image.survey import ATTRIBUTE, ATTRIBUTES, PATH_MAX, SOCKET, TOO_LONG, shown

OPAQUE = "trusted.overlay.opaque"
# Overlay's own notes, which mean nothing in another place; SELinux' labels are of the machine that the edit is made on.
LOCAL = re.compile(r"(?:trusted|user)\.overlay\..*|security\.selinux")
# Longer ones can't be looked at by a descriptor of the root, as everything here is.
LONGEST = PATH_MAX - len("/proc/self/fd/1234567/")
ADDED, CHANGED, REMOVED = "added", "changed", "removed"
FOLDER, FILE, WHITEOUT = "folder", "file", "whiteout"
KINDS = {
    stat.S_IFDIR: FOLDER,
    stat.S_IFREG: FILE,
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A path to be stored, relative to the root.

    ``kind`` as in KINDS, or WHITEOUT; ``what`` is ("added",), ("removed",), or what of it changed, in words; none for
    a folder that is only on the way to a change. ``opaque``: nothing of the folder below is to be seen. ``hard`` is the
    path, stored before, that is the same file. ``cleaned``: its content is not the edit's but what Cleaner.fix makes.
    """

    path: bytes
    kind: str
    what: tuple[str, ...] = ()
    opaque: bool = False
    hard: bytes = b""
    size: int = 0
    cleaned: bool = False


@dataclass
class _Frame:
    """A folder that is being walked: ``merged`` says that the folder below shows through."""

    item: Item
    names: list[bytes]
    merged: bool
    stored: bool


@dataclass
class Walk:
    """A walk over an upper folder (``upper``, a descriptor) beside what is below (``below``, another).

    After it, ``cleaned`` has the paths that are not stored, or not as they are; ``hidden`` those that replaced folders
    hide.
    """

    upper: int
    below: int
    cleaner: Cleaner
    leave_out: frozenset[bytes] = frozenset()
    cleaned: list[bytes] = field(default_factory=list)
    hidden: list[bytes] = field(default_factory=list)
    _links: dict[int, list[tuple[bytes, bool]]] = field(default_factory=dict)
    _linked: dict[int, bytes] = field(default_factory=dict)
    _differs: dict[int, bool] = field(default_factory=dict)

    def items(self) -> Iterator[Item]:
        """Every path to be stored, folders before what is in them, names sorted. Raises CapsulekitError."""
        self._note_links()
        _check_root(self.upper)
        frames = [_Frame(Item(b"", FOLDER), self._names(b""), merged=True, stored=True)]
        while frames:
            frame = frames[-1]
            if not frame.names:
                frames.pop()
                continue
            name = frame.names.pop()
            path = frame.item.path + b"/" + name if frame.item.path else name
            if path in self.leave_out:
                continue
            item, inner = self._one(path, frame.merged)
            if item and (item.what or item.opaque):
                yield from _on_the_way(frames)
                yield item
            if item and inner is not None:
                frames.append(_Frame(item, self._names(path), inner, stored=bool(item.what or item.opaque)))

    def _one(self, path: bytes, merged: bool) -> tuple[Item | None, bool | None]:
        """What is to be stored of one path, and for a folder whether that below shows through."""
        status = _status(self.upper, path)
        under = status_or_none(self.below, path) if merged else None
        if is_whiteout(status):
            return (Item(path, WHITEOUT, (REMOVED,)) if under else None), None
        action = self.cleaner.action(os.fsdecode(path), status.st_mode)
        if action != KEEP:
            self.cleaned.append(path)
        if action == "remove" or (under is None and self._is_ours(path, status)):
            return None, None
        self._check(path, status)
        if stat.S_ISDIR(status.st_mode):
            return self._folder(path, status, under)
        if action != KEEP:
            return self._cleaned(path, status, under), None
        return self._file(path, status, under), None

    def _is_ours(self, path: bytes, status: os.stat_result) -> bool:
        """Whether it is the file that keeps services off, copied up by something that went over all files."""
        if path != POLICY_FILE.encode() or not stat.S_ISREG(status.st_mode):
            return False
        with open_file(self.upper, path) as file:
            return file.read(len(POLICY) + 1) == POLICY

    def _folder(self, path: bytes, status: os.stat_result, under: os.stat_result | None) -> tuple[Item, bool]:
        same_kind = under is not None and stat.S_ISDIR(under.st_mode)
        opaque = same_kind and is_opaque(self.upper, path) and not self._same_tree(path)
        what = self._what(path, status, under)
        if opaque:
            what = ("replaced", *what)
            self._note_hidden(path)
        return Item(path, FOLDER, what, opaque), same_kind and not opaque

    def _cleaned(self, path: bytes, status: os.stat_result, under: os.stat_result | None) -> Item | None:
        """A file whose content is made anew; when it was made so already it is no change, whatever its time."""
        with open_file(self.upper, path) as file:
            content = self.cleaner.fix(os.fsdecode(path), status.st_mode)(file.read(MAX_FIXED))
        what: tuple[str, ...] = (ADDED,)
        if under is not None and stat.S_ISREG(under.st_mode):
            what = tuple(w for w in self._attributes(path, status, under) if w != "time")
            with open_file(self.below, path) as file:
                what = (("content", *what)) if file.read(len(content) + 1) != content else what
        elif under is not None:
            what = ("type",)
        return Item(path, FILE, what, size=len(content), cleaned=True) if what else None

    def _file(self, path: bytes, status: os.stat_result, under: os.stat_result | None) -> Item | None:
        what = self._what(path, status, under)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        hard = b""
        if status.st_nlink > 1:
            if not what and not self._group_differs(status.st_ino):
                return None
            what = what or ("hard link",)
            hard = self._linked.setdefault(status.st_ino, path)
        if not what:
            return None
        return Item(path, KINDS[stat.S_IFMT(status.st_mode)], what, hard=b"" if hard == path else hard, size=size)

    def _what(self, path: bytes, status: os.stat_result, under: os.stat_result | None) -> tuple[str, ...]:
        """What differs from the same path below, in words; nothing for a mere copy."""
        if under is None:
            return (ADDED,)
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(under.st_mode):
            return ("type",)
        what = self._attributes(path, status, under)
        if stat.S_ISDIR(status.st_mode):
            return tuple(w for w in what if w != "time")  # of a folder it changes when something in it does
        return (("content", *what)) if self._content_differs(path, status, under) else what

    def _attributes(self, path: bytes, status: os.stat_result, under: os.stat_result) -> tuple[str, ...]:
        mine, theirs = attributes(self.upper, path), attributes(self.below, path)
        acl = {key for key in mine.keys() | theirs.keys() if key.startswith("system.")}
        pairs = {
            "mode": (status.st_mode, under.st_mode),
            "owner": ((status.st_uid, status.st_gid), (under.st_uid, under.st_gid)),
            "time": (status.st_mtime_ns // 10**9, under.st_mtime_ns // 10**9),  # a layer knows whole seconds
            "ACL": ([mine.get(key) for key in sorted(acl)], [theirs.get(key) for key in sorted(acl)]),
            "xattr": tuple({k: v for k, v in held.items() if k not in acl} for held in (mine, theirs)),
        }
        return tuple(name for name, (one, two) in pairs.items() if one != two)

    def _content_differs(self, path: bytes, status: os.stat_result, under: os.stat_result) -> bool:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFLNK:
            return os.readlink(path, dir_fd=self.upper) != os.readlink(path, dir_fd=self.below)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            return status.st_rdev != under.st_rdev
        if kind != stat.S_IFREG:
            return False
        if status.st_size != under.st_size:
            return True
        with open_file(self.upper, path) as one, open_file(self.below, path) as two:
            while data := one.read(CHUNK):
                if data != two.read(CHUNK):
                    return True
        return False

    def _same_tree(self, path: bytes) -> bool:
        """Whether a folder that was made anew holds just what was there before: a package manager may do that."""
        todo = [path]
        while todo:
            folder = todo.pop()
            names = set(names_in(self.upper, folder))
            if names != set(names_in(self.below, folder)):
                return False
            for name in names:
                one = folder + b"/" + name
                status, under = _status(self.upper, one), _status(self.below, one)
                if is_whiteout(status) or self._what(one, status, under):
                    return False
                if stat.S_ISDIR(status.st_mode):
                    todo.append(one)
        return True

    def _note_hidden(self, path: bytes) -> None:
        """What of a replaced folder is gone: the topmost paths."""
        todo = [path]
        while todo:
            folder = todo.pop()
            for name in sorted(names_in(self.below, folder)):
                one = folder + b"/" + name
                status, under = status_or_none(self.upper, one), _status(self.below, one)
                if status is None or is_whiteout(status):
                    self.hidden.append(one)
                elif stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(under.st_mode):
                    todo.append(one)

    def _names(self, path: bytes) -> list[bytes]:
        return sorted(names_in(self.upper, path), reverse=True)  # taken from the end

    def _check(self, path: bytes, status: os.stat_result) -> None:
        """Raise CapsulekitError for what can't be stored."""
        why = None
        if stat.S_ISSOCK(status.st_mode):
            why = SOCKET
        elif not all(ATTRIBUTES.fullmatch(name) for name in attributes(self.upper, path)):
            why = ATTRIBUTE
        if why:
            raise _refused(path, why)

    def _note_links(self) -> None:
        """Files of several names: whether to store one depends on the others."""
        todo = [(b"", True)]
        while todo:
            folder, merged = todo.pop()
            for name in names_in(self.upper, folder):
                path = folder + b"/" + name if folder else name
                if len(path) > LONGEST:
                    raise _refused(path, TOO_LONG)
                status = _status(self.upper, path)
                if path in self.leave_out or self.cleaner.action(os.fsdecode(path), status.st_mode) != KEEP:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    under = status_or_none(self.below, path) if merged else None
                    shows = under is not None and stat.S_ISDIR(under.st_mode) and not is_opaque(self.upper, path)
                    todo.append((path, shows))
                elif status.st_nlink > 1 and not is_whiteout(status):
                    self._links.setdefault(status.st_ino, []).append((path, merged))

    def _group_differs(self, inode: int) -> bool:
        """Whether any of a file's names differs from below, or is another file there."""
        if inode not in self._differs:
            self._differs[inode] = self._look_at_group(self._links.get(inode, []))
        return self._differs[inode]

    def _look_at_group(self, names: list[tuple[bytes, bool]]) -> bool:
        seen = set()
        for path, merged in names:
            under = status_or_none(self.below, path) if merged else None
            if under is None or self._what(path, _status(self.upper, path), under):
                return True
            seen.add((under.st_dev, under.st_ino))
        return len(seen) > 1


def _refused(path: bytes, why: tuple[str, str]) -> CapsulekitError:
    return CapsulekitError(f"/{shown(path)} in the edit {why[0]}", hint=why[1])


def _on_the_way(frames: list[_Frame]) -> Iterator[Item]:
    for frame in frames:
        if not frame.stored:
            frame.stored = True
            yield frame.item


def _check_root(upper: int) -> None:
    """The root folder itself is the same in every layer."""
    status = os.fstat(upper)
    if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (0o755, 0, 0) or attributes(upper, b""):
        raise CapsulekitError(
            "the capsule's root folder itself was changed, and a layer can't hold that",
            hint="make it root's with mode 0755, without attributes",
        )


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is overlay's mark for a deleted path."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(root: int, path: bytes) -> bool:
    """Whether a folder of a layer, or of an upper folder, hides the one below."""
    with suppress(OSError):
        return os.getxattr(_shown_path(root, path), OPAQUE, follow_symlinks=False) == b"y"
    return False


def attributes(root: int, path: bytes) -> dict[str, bytes]:
    """The extended attributes of a path below ``root`` but those that mean something here only."""
    full = _shown_path(root, path)
    try:
        names = [name for name in os.listxattr(full, follow_symlinks=False) if not LOCAL.fullmatch(name)]
    except OSError as wrong:
        if wrong.errno != _NO_ATTRIBUTES:
            raise
        return {}
    return {name: os.getxattr(full, name, follow_symlinks=False) for name in names}


_NO_ATTRIBUTES = 95  # EOPNOTSUPP


def open_file(root: int, path: bytes) -> FileIO:
    """A regular file below ``root``, to read."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    return FileIO(fd, "rb")


def _shown_path(root: int, path: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (root, path or b".")


def names_in(root: int, path: bytes) -> list[bytes]:
    """The names in a folder below ``root``."""
    fd = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]  # noqa: PTH208 (of a descriptor)
    finally:
        os.close(fd)


def _status(root: int, path: bytes) -> os.stat_result:
    return os.stat(path, dir_fd=root, follow_symlinks=False)


def status_or_none(root: int, path: bytes) -> os.stat_result | None:
    """What a path below ``root`` is, None where there is nothing."""
    try:
        return _status(root, path)
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Told:
    """All of a walk: what is to be stored, what is cleaned, and what is hidden by replaced folders."""

    items: tuple[Item, ...]
    cleaned: tuple[bytes, ...]
    hidden: tuple[bytes, ...]


def walk(upper: Path, below: Path, cleaner: Cleaner, leave_out: Collection[str] = ()) -> Told:
    """Walk over an upper folder; nobody writes to it meanwhile. ``leave_out`` are paths that are passed over.

    Raises CapsulekitError naming what can't be stored.
    """
    upper_fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    below_fd = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        done = Walk(upper_fd, below_fd, cleaner, frozenset(map(os.fsencode, leave_out)))
        items = tuple(done.items())
    finally:
        os.close(upper_fd)
        os.close(below_fd)
    return Told(items, tuple(done.cleaned), tuple(done.hidden))
