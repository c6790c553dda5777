"""Reading a Perceus capsule that anyone may have made: its root unpacked, its few other files looked at.

What is in one: docs/reference/perceus-capsules.md. Nobody signed it, so every bound is ours: bytes, members, headers.
"""

from __future__ import annotations

import bz2
import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.hybrid import forget
from provisioner.vnfs.perceus.unpack import Unpacker

MAGIC = b"BZh"
MAX_MEMBERS = 2_000_000
MAX_HEADER = 4 << 20  # bytes of headers before one member
MAX_SMALL = 1 << 20  # bytes of config, hybridize, livesync.skip or a script
MAX_SCRIPTS = 256
# What Perceus itself puts beside the root: programs for the master, and what only its own boot needs.
_PROGRAMS = frozenset(("mount", "umount", "close", "configure", "livesync", "install"))
_IGNORED = frozenset(("vmlinuz", "vnfs.img", "master-includes"))
_SMALL = frozenset(("config", "hybridize", "livesync.skip"))
_SCRIPT = re.compile(r"(?:nodescripts/)?([A-Za-z0-9][A-Za-z0-9_-]{0,31})/([0-9]{2}-[A-Za-z0-9][A-Za-z0-9._-]{0,80})")
# They fetch and start the image that Perceus made; our stage 1 and 2 do that.
_BOOT_SCRIPT = re.compile(r"[0-9]{2}-vnfsinit(\.sh)?")


@dataclass(frozen=True)
class Script:
    """A script for nodes: its provisionary state, its name with its number, and its text."""

    state: str
    name: str
    data: bytes

    @property
    def member(self) -> str:
        """Its name in one of our capsules."""
        return f"provision/{self.state}/{self.name}"


@dataclass
class Contents:
    """What a Perceus capsule holds beside its root.

    ``programs`` are for the master and never run; ``left_out`` says in a line each what does not go along.
    """

    config: bytes = b""
    hybridize: bytes = b""
    livesync_skip: bytes = b""
    scripts: list[Script] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    paths: int = 0
    size: int = 0  # bytes of the root's files


def is_perceus(path: Path) -> bool:
    """Whether the file looks like one: bzip2, which none of ours is. False for what can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_archive(path: Path, into: Path | None, limit: int) -> Contents:
    """Unpack the root below ``into`` (only look when None); at most ``limit`` bytes of tar.

    Raises CapsulekitError, and then part of the root is there: ``into`` is the caller's to remove.
    """
    found, unpacker = Contents(), Unpacker(into) if into is not None else None
    with _broken(path), bz2.open(path, "rb") as packed:
        reader = _Reader(packed, limit)
        # The reader is all of a file that tarfile needs.
        with tarfile.open(fileobj=reader, mode="r:", errorlevel=2, encoding="utf-8", errors="surrogateescape") as tar:
            for number, (member, name) in enumerate(_members(tar, reader)):
                if number >= MAX_MEMBERS:
                    raise CapsulekitError(f"it holds more than {MAX_MEMBERS} paths")
                if name == "rootfs" or name.startswith("rootfs/"):
                    found.paths += 1
                    found.size += member.size if member.isreg() else 0
                    # A file with holes is far larger than what the archive holds of it.
                    reader.allow(found.size)
                    if unpacker is not None:
                        unpacker.put(member, name.removeprefix("rootfs").strip("/"), _data(tar, member))
                else:
                    _beside(found, tar, member, name)
        if unpacker is not None:
            unpacker.finish()
            found.left_out += unpacker.remarks()
    if not found.paths:
        raise CapsulekitError(f"{path} is no Perceus capsule: it holds no rootfs/")
    found.scripts.sort(key=lambda script: script.member)
    return found


def _members(tar: tarfile.TarFile, reader: _Reader) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Each member and its cleaned name; the archive's own folder is left out."""
    while True:
        reader.headers(MAX_HEADER)
        member = tar.next()
        reader.headers(None)
        if member is None:
            reader.ended()
            return
        name = _clean(member.name)
        if name:
            yield member, name
        forget(tar)


def _clean(name: str) -> str:
    if name.startswith("/"):
        raise CapsulekitError(f"a path in it is absolute: {_shown(name)}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CapsulekitError(f"a path in it has '..': {_shown(name)}")
    return "/".join(parts)


def _shown(name: str) -> str:
    return ascii(name[:200])


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    return tar.extractfile(member) if member.isreg() else None


def _beside(found: Contents, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
    """A path outside of the root."""
    script = _SCRIPT.fullmatch(name)
    if member.isdir() or name in _IGNORED:
        return
    if name in _PROGRAMS:
        found.programs.append(name)
    elif name in _SMALL:
        setattr(found, name.replace(".", "_"), _small(tar, member, name))
    elif script and _BOOT_SCRIPT.fullmatch(script[2]):
        found.left_out.append(f"{name} (Perceus's own boot)")
    elif script:
        if len(found.scripts) >= MAX_SCRIPTS:
            raise CapsulekitError(f"it holds more than {MAX_SCRIPTS} scripts")
        made = Script(script[1], script[2], _small(tar, member, name))
        if any(made.member == other.member for other in found.scripts):
            raise CapsulekitError(f"it holds the script {made.state}/{made.name} twice")
        found.scripts.append(made)
    elif len(found.left_out) < 1000:
        found.left_out.append(f"{_shown(name)} (unknown)")


def _small(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    if not member.isreg():
        raise CapsulekitError(f"{name} in it is no file")
    if member.size > MAX_SMALL:
        raise CapsulekitError(f"{name} in it has {member.size} bytes; at most {MAX_SMALL} are expected")
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


class _Reader(io.RawIOBase):
    """The unpacked tar as a file that only goes forwards, bounded in all, and in what one member's headers may take."""

    def __init__(self, packed: IO[bytes], limit: int) -> None:
        self._packed, self._limit = packed, limit
        self._at, self._last = 0, b""
        self._left: int | None = MAX_HEADER  # opening it reads the first header

    def headers(self, most: int | None) -> None:
        """From here on at most this many bytes may be read; None: as many as there are."""
        self._left = most

    def allow(self, size: int) -> None:
        """Raise CapsulekitError when ``size`` bytes are more than may be unpacked."""
        if size > self._limit:
            raise CapsulekitError(
                f"it unpacks to more than {self._limit / 1e6:.0f} MB", hint="allow more: --max-size MB"
            )

    def ended(self) -> None:
        """Check that the tar ended where it says so, and the file too: tarfile takes a damaged header for the end."""
        if len(self._last) != tarfile.BLOCKSIZE or any(self._last):
            raise CapsulekitError("its tar is damaged, or truncated")
        while self._take(1 << 20):
            pass

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """As far as tarfile needs it."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes of the tar. Raises CapsulekitError at a bound."""
        if self._left is not None:
            self._left -= size
            if size < 0 or self._left < 0:
                raise CapsulekitError(f"a header in it is longer than {MAX_HEADER} bytes")
            self._last = self._take(size)
            return self._last
        return self._take(size)

    def readinto(self, buffer: Any) -> int:
        """The same into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Skip forwards. Raises CapsulekitError for a tar that wants to go back."""
        if whence != os.SEEK_SET or place < self._at:
            raise CapsulekitError("its tar is damaged")
        while self._at < place:
            if not self._take(min(1 << 20, place - self._at)):
                raise CapsulekitError("it is truncated")
        return self._at

    def _take(self, size: int) -> bytes:
        data = self._packed.read(size)
        self._at += len(data)
        self.allow(self._at)
        return data


@contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Whatever is wrong in the file is told with its name."""
    try:
        yield
    except CapsulekitError as wrong:
        told = wrong.message if str(path) in wrong.message else f"{path}: {wrong.message}"
        raise CapsulekitError(told, hint=wrong.hint) from wrong
    except (tarfile.TarError, EOFError, RecursionError, ValueError) as wrong:
        raise CapsulekitError(f"{path} is damaged: {type(wrong).__name__ if not str(wrong) else wrong}") from wrong
    except OSError as wrong:
        if wrong.errno is None:  # bz2's own
            raise CapsulekitError(f"{path} is damaged: {wrong}") from wrong
        raise CapsulekitError(f"can't unpack {path}: {wrong.strerror}: {wrong.filename or ''}".rstrip(": ")) from wrong
