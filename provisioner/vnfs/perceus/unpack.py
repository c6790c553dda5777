"""Putting an untrusted tar's root onto this disk: nothing leaves the folder, no link is followed, no device is made."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError

MAX_ID = (1 << 32) - 2


class Unpacker:
    """Unpacks below ``root``, an empty folder of our own that nobody else can enter."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: list[tuple[Path, int, int, int, float]] = []
        self._devices: list[str] = []
        self._attributes = 0

    def put(self, member: tarfile.TarInfo, name: str, data: IO[bytes] | None) -> None:
        """One path; ``name`` has no leading slash, no "." and no "..". Raises CapsulekitError, OSError."""
        target = self._root / name
        self._check_above(name)
        if member.isdir():
            self._folder(member, target, name)
            return
        if name == "" or target.is_symlink() or target.exists():
            raise CapsulekitError(f"it holds {_shown(name)} twice")
        self._attributes += any(key.startswith("SCHILY.xattr.") for key in member.pax_headers)
        if member.islnk():
            self._link(member, target)
            return
        if member.ischr() or member.isblk():
            if not name.startswith("dev/"):
                self._devices.append(name)
            return
        if member.issym():
            target.symlink_to(member.linkname)
        elif member.isfifo():
            os.mkfifo(target, 0o600)
        elif data is not None:
            with target.open("xb") as out:
                shutil.copyfileobj(data, out, 1 << 20)
        else:
            raise CapsulekitError(f"{_shown(name)} in it is of a kind no root holds")
        self._dress(member, target)

    def finish(self) -> None:
        """Owners, modes and times of the folders, once nothing more goes into them."""
        for path, uid, gid, mode, mtime in reversed(self._folders):
            os.chown(path, uid, gid)
            path.chmod(mode)
            os.utime(path, (mtime, mtime))

    def remarks(self) -> list[str]:
        """What was left out."""
        told = []
        if self._devices:
            told.append(f"{len(self._devices)} device nodes outside of /dev, such as {_shown(self._devices[0])}")
        if self._attributes:
            told.append(f"the extended attributes of {self._attributes} files")
        return told

    def _check_above(self, name: str) -> None:
        """Every folder above is a real one, made when it is missing: nothing is written through a link."""
        here = self._root
        for part in name.split("/")[:-1]:
            here = here / part
            try:
                mode = here.lstat().st_mode
            except FileNotFoundError:
                here.mkdir(mode=0o755)
                continue
            if not stat.S_ISDIR(mode):
                raise CapsulekitError(f"{_shown(name)} in it leads through a link or a file")

    def _folder(self, member: tarfile.TarInfo, target: Path, name: str) -> None:
        if name:
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                raise CapsulekitError(f"it holds {_shown(name)} twice")
            target.mkdir(mode=0o700, exist_ok=True)
            self._folders.append((target, *_owner(member), member.mode & 0o7777, _time(member)))

    def _link(self, member: tarfile.TarInfo, target: Path) -> None:
        parts = [part for part in member.linkname.split("/") if part not in ("", ".")]
        if member.linkname.startswith("/") or ".." in parts or parts[:1] != ["rootfs"] or len(parts) < 2:
            raise CapsulekitError(f"a hard link in it leads out of its root: {_shown(member.linkname)}")
        inside = "/".join(parts[1:])
        self._check_above(inside)
        source = self._root / inside
        try:
            linkable = not stat.S_ISDIR(source.lstat().st_mode)
        except FileNotFoundError:
            linkable = False
        if not linkable:
            raise CapsulekitError(f"a hard link in it leads to nothing: {_shown(member.linkname)}")
        os.link(source, target, follow_symlinks=False)

    def _dress(self, member: tarfile.TarInfo, target: Path) -> None:
        os.chown(target, *_owner(member), follow_symlinks=False)
        if not member.issym():
            target.chmod(member.mode & 0o7777)  # after the owner: changing that takes setuid away
        os.utime(target, (_time(member), _time(member)), follow_symlinks=False)


def _owner(member: tarfile.TarInfo) -> tuple[int, int]:
    if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
        raise CapsulekitError(f"{_shown(member.name)} in it has an impossible owner")
    return member.uid, member.gid


def _time(member: tarfile.TarInfo) -> float:
    return min(max(float(member.mtime), 0.0), float(1 << 33))


def _shown(name: str) -> str:
    return ascii(name[:200])
