"""A tree with everything a file system can hold, and a way to read one back as data, path by path.

Nothing here goes through a path longer than a name: both work where open(2) of a full path would fail.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

SPARSE = 5 << 30
# In the sparse file: bytes at its start, in the middle (no multiple of any block) and at its very end.
ISLANDS = {0: b"head", (3 << 30) + 12345: b"island" * 1000, SPARSE - 4: b"tail"}
ODD_NAMES = (
    b"new\nline", b"tab\there", b'double"quote', b"single'quote", b"back\\slash", b"-dash", b"--exclude=x", b" blank ",
    b"...", b".hidden", b"\xff\xfe not utf-8 \xc3", b"\x01\x1b[31m", "ünïcödé".encode(), b"star*[a]?", b"%41%2e",
    b"#hash", b"a" * 255, b"~", b"$(id)", b"x;y",
)  # fmt: skip
FAR_PAST, FAR_FUTURE, TINY = -86_400 * 365 * 30, 9_000_000_000, 1_700_000_000
HIGH_ID = 3_000_000_000
ZEROS = bytes(1 << 20)


def make_hostile(root: Path) -> None:
    """Fill ``root``/srv/hostile; needs root's rights, setfacl and setcap."""
    at = root / "srv/hostile"
    at.mkdir(parents=True)
    for make in (_names, _links, _nodes, _modes, _attributes, _acls, _times, _deep, _sparse):
        make(at)


def _file(path: Path, data: bytes = b"x", mode: int = 0o644) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def _names(at: Path) -> None:
    folder = at / "names"
    folder.mkdir()
    for number, name in enumerate(map(os.fsdecode, ODD_NAMES)):
        _file(folder / name, b"content %d" % number)
        (folder / f"link {number}").symlink_to(name)
    odd = folder / os.fsdecode(b"folder\n\xff")
    odd.mkdir()
    _file(odd / "in it")


def _links(at: Path) -> None:
    (at / "links/there").mkdir(parents=True)
    (at / "empty/empty").mkdir(parents=True)
    _file(at / "links/one", b"the same file", 0o640)
    (at / "links/two").hardlink_to(at / "links/one")
    (at / "links/there/three").hardlink_to(at / "links/one")
    (at / "a-first").hardlink_to(at / "links/one")
    # The same content, but no link.
    _file(at / "links/another", b"the same file", 0o640)
    targets = {"dangling": "nowhere", "absolute": "/etc/hostname", "loop": "loop", "up": "../../../../..",
               "folder": "there", "long": "x/" * 2000, "odd": "a\nb\tc"}  # fmt: skip
    for name, target in targets.items():
        (at / "links" / f"to-{name}").symlink_to(target)
    (at / "links/hard-to-dangling").hardlink_to(at / "links/to-dangling")


def _nodes(at: Path) -> None:
    (at / "nodes").mkdir()
    os.mkfifo(at / "nodes/fifo", 0o640)
    os.mknod(at / "nodes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(at / "nodes/high", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    os.mknod(at / "nodes/disk", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    (at / "nodes/null").chmod(0o666)
    os.chown(at / "nodes/disk", 0, 6)


def _modes(at: Path) -> None:
    (at / "modes").mkdir()
    for mode in (0, 0o1, 0o444, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777):
        _file(at / f"modes/file {mode:04o}", mode=mode)
        (at / f"modes/folder {mode:04o}").mkdir()
        (at / f"modes/folder {mode:04o}").chmod(mode)
    for owner in (1, 65_534, 65_536, 70_000, 2_097_152, HIGH_ID):
        _file(at / f"modes/owner {owner}")
        os.chown(at / f"modes/owner {owner}", owner, owner + 1)
    # Owned first and given its bit after: chown takes it away.
    _file(at / "modes/setuid of another")
    os.chown(at / "modes/setuid of another", 70_000, 70_000)
    (at / "modes/setuid of another").chmod(0o4755)


def _attributes(at: Path) -> None:
    folder = at / "attributes"
    folder.mkdir()
    for name in ("file", "empty", "linked"):
        _file(folder / name)
    os.setxattr(folder / "file", "user.text", "für alle".encode())
    os.setxattr(folder / "file", "user.bytes", bytes(range(256)))
    os.setxattr(folder / "file", "user.lines", b"a\nb\0c\n")
    os.setxattr(folder / "file", "user.long", b"0123456789" * 300)
    os.setxattr(folder / "empty", "user.nothing", b"")
    os.setxattr(folder / "linked", "user.shared", b"1")
    (folder / "linked again").hardlink_to(folder / "linked")
    os.setxattr(folder, "user.of.a.folder", b"1")
    _file(folder / "capable", mode=0o755)
    subprocess.run(["setcap", "cap_net_raw,cap_net_admin+ep", folder / "capable"], check=True)
    _file(folder / "labelled")
    os.setxattr(folder / "labelled", "security.capsulekit", b"system_u:object_r:x\0")


def _acls(at: Path) -> None:
    (at / "acls/folder").mkdir(parents=True)
    _file(at / "acls/file", mode=0o640)
    _file(at / "acls/with:colon and blank", mode=0o600)
    _file(at / "acls/linked", mode=0o640)
    (at / "acls/linked again").hardlink_to(at / "acls/linked")
    odd = at / "acls" / os.fsdecode(b"new\nline\xff")
    _file(odd)
    for args in (
        ["-m", "u:70000:rwx,g:1234:r,m::rx", at / "acls/file"],
        ["-m", "u:1:r", at / "acls/with:colon and blank"],
        ["-m", "g:3000000000:rw", odd],
        ["-m", "u:9:r", at / "acls/linked"],
        ["-m", "u:5:rwx,d:u:6:rwx,d:g::r-x,d:o::---", at / "acls/folder"],
    ):
        subprocess.run(["setfacl", *args], check=True)
    _file(at / "acls/folder/inherited")


def _times(at: Path) -> None:
    (at / "times").mkdir()
    for when in (FAR_PAST, -1, 0, TINY, FAR_FUTURE):
        _file(at / f"times/{when}")
        os.utime(at / f"times/{when}", (when, when))


def _deep(at: Path) -> None:
    """Longer than a tar header's name (255), than its page (4096 with what is above it no program can open)."""
    fd = os.open(at, os.O_RDONLY)
    for depth in range(15):
        name = b"%02d-" % depth + b"d" * 247
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    end = os.open(b"at the end", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd)
    os.write(end, b"deep")
    os.close(end)
    os.close(fd)


def _sparse(at: Path) -> None:
    with (at / "sparse").open("wb") as file:
        for place, data in ISLANDS.items():
            file.seek(place)
            file.write(data)


@dataclass(frozen=True)
class Seen:
    """One path as it is: ``rdev`` of devices, ``content`` the digest of a file's bytes or a link's target.

    ``group`` are all paths that are the same file, sorted; ``attributes`` hold the ACLs too.
    """

    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    content: str
    attributes: tuple[tuple[str, bytes], ...]
    group: tuple[bytes, ...]
    mtime: float


def read_tree(root: Path, skip: Callable[[bytes], bool] = lambda _: False) -> dict[bytes, Seen]:
    """Every path below ``root`` but those that ``skip`` takes (with what is below them)."""
    found: dict[bytes, Seen] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    keys: dict[bytes, tuple[int, int]] = {}
    start = os.open(root, os.O_RDONLY)
    _read_folder(start, b"", skip, found, inodes, keys)
    return {path: replace(seen, group=tuple(sorted(inodes[keys[path]]))) for path, seen in found.items()}


def _read_folder(
    fd: int,
    at: bytes,
    skip: Callable[[bytes], bool],
    found: dict[bytes, Seen],
    inodes: dict[tuple[int, int], list[bytes]],
    keys: dict[bytes, tuple[int, int]],
) -> None:
    """Reads one folder and closes it."""
    try:
        for text in sorted(os.listdir(fd)):
            name = os.fsencode(text)
            path = at + b"/" + name if at else name
            if skip(path):
                continue
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            found[path] = _read(fd, name, status)
            keys[path] = (status.st_dev, status.st_ino)
            inodes.setdefault(keys[path], []).append(path)
            if stat.S_ISDIR(status.st_mode):
                _read_folder(os.open(name, os.O_RDONLY, dir_fd=fd), path, skip, found, inodes, keys)
    finally:
        os.close(fd)


def _read(fd: int, name: bytes, status: os.stat_result) -> Seen:
    here = b"/proc/self/fd/%d/%s" % (fd, name)
    content = ""
    if stat.S_ISREG(status.st_mode):
        content = digest_of(os.open(name, os.O_RDONLY, dir_fd=fd))
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsdecode(os.readlink(name, dir_fd=fd))
    kept = tuple((key, os.getxattr(here, key, follow_symlinks=False)) for key in _attributes_of(here) if _counts(key))
    device = status.st_rdev if stat.S_IFMT(status.st_mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return Seen(status.st_mode, status.st_uid, status.st_gid, device, size, content, kept, (), status.st_mtime)


def _attributes_of(path: bytes) -> list[str]:
    try:
        return sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []  # a layer in which nothing has any


def _counts(attribute: str) -> bool:
    """trusted.* belongs to whoever mounts (overlayfs has its own there)."""
    return not attribute.startswith("trusted.")


def digest_of(fd: int) -> str:
    """The digest of a file, which is closed. Holes are not read: where they are and how long goes into it as zeros do.

    What is hashed are the bytes with every whole, aligned page of zeros left out, each with its place: the same for a
    file with holes and for one without.
    """
    digest, page = hashlib.sha256(), 4096
    with os.fdopen(fd, "rb", buffering=0) as file:
        end, at = os.fstat(fd).st_size, 0
        digest.update(b"%d\n" % end)
        while at < end:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                break
            stop = os.lseek(fd, start, os.SEEK_HOLE)
            at = start - start % page
            while at < stop:
                file.seek(at)
                data = file.read(min(len(ZEROS), stop - at))
                if not data:
                    raise AssertionError("the file became shorter")
                _sum_pages(digest, at, data, page)
                at += len(data)
    return digest.hexdigest()


def _sum_pages(digest: hashlib._Hash, at: int, data: bytes, page: int) -> None:
    if data == ZEROS[: len(data)]:
        return
    for offset in range(0, len(data), page):
        piece = data[offset : offset + page].rstrip(b"\0")
        if piece:
            digest.update(b"%d:%d:" % (at + offset, len(piece)) + piece)


def write_socket(path: Path) -> None:
    """A socket as a program leaves it behind."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
