"""Files of the master that others read too: what would change is shown first, the old file is kept, one step writes it.

A file is wholly ours (a unit, a drop-in) or shared (/etc/exports); of a shared one only the lines between our two marks
are, and everything else stays byte for byte.
"""

from __future__ import annotations

import difflib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, fsync_dir

BIGGEST = 8 << 20  # bytes: no configuration file is larger


@dataclass(frozen=True)
class Change:
    """A file that is to be written. ``old`` is its content now, None when it is not there."""

    path: Path
    old: bytes | None
    new: bytes
    mode: int = 0o644

    @property
    def diff(self) -> str:
        """The change as a unified diff."""
        old, new = (_text(content or b"").splitlines(keepends=True) for content in (self.old, self.new))
        before = "/dev/null" if self.old is None else str(self.path)
        lines = difflib.unified_diff(old, new, before, str(self.path))
        return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def whole(path: Path, text: str, mode: int = 0o644) -> Change | None:
    """The change that makes ``text`` the content of a file that is ours alone; None when it is already."""
    path, old = _read(path)
    new = text.encode()
    return None if old == new else Change(path, old, new, mode)


def block(path: Path, lines: Sequence[str], *, comment: str = "#", mode: int = 0o644) -> Change | None:
    """The change that makes ``lines`` our block of a shared file; none at all remove it. None: nothing to change.

    ``comment`` starts a comment in this file. A new block goes to the end. Raises CapsulekitError when the marks in
    the file do not fit together.
    """
    path, old = _read(path)
    begin, end = (f"{comment} {word} capsulekit: these lines are written by it" for word in ("BEGIN", "END"))
    # Byte for byte: what is not ours may be in any encoding.
    text = (old or b"").decode("utf-8", "surrogateescape")
    have = text.splitlines(keepends=True)
    wanted = [f"{line}\n" for line in (begin, *lines, end)] if lines else []
    starts, ends = ([n for n, line in enumerate(have) if line.rstrip() == mark] for mark in (begin, end))
    if not starts and not ends:
        glue = "\n" if text and not text.endswith("\n") and wanted else ""
        new = text + glue + "".join(wanted)
    elif len(starts) == len(ends) == 1 and starts[0] < ends[0]:
        new = "".join([*have[: starts[0]], *wanted, *have[ends[0] + 1 :]])
    else:
        number = (starts or ends)[0] + 1
        raise CapsulekitError(
            f"{path}:{number}: the marks of our block do not fit together",
            hint=f"there must be one line {begin!r} and below it one line {end!r}, or neither",
        )
    content = new.encode("utf-8", "surrogateescape")
    return None if content == (old or b"") else Change(path, old, content, mode)


def outside_block(path: Path, *, comment: str = "#") -> list[tuple[int, str]]:
    """(number, text) of every line of a shared file that is not in our block; [] when there is no file."""
    _, old = _read(path)
    begin, end = (f"{comment} {word} capsulekit: these lines are written by it" for word in ("BEGIN", "END"))
    inside, found = False, []
    for number, line in enumerate((old or b"").decode("utf-8", "replace").splitlines(), 1):
        inside = inside or line.rstrip() == begin
        if not inside:
            found.append((number, line))
        inside = inside and line.rstrip() != end
    return found


def write(change: Change) -> Path | None:
    """Write one file in one step and return where the old one is kept, None when there was none.

    Raises CapsulekitError when the file is not what the diff was made from any more: nothing is written then.
    """
    path, now = _read(change.path)
    if now != change.old:
        raise CapsulekitError(f"{path} was changed by somebody else meanwhile", hint="run the same command again")
    path.parent.mkdir(parents=True, exist_ok=True)
    if change.old is None:
        atomic_write(path, change.new, change.mode)
        return None
    owner = path.stat()
    kept = _keep(path, change.old, owner)
    atomic_write(path, change.new, stat.S_IMODE(owner.st_mode))
    _own(path, owner)
    return kept


def _keep(path: Path, content: bytes, owner: os.stat_result) -> Path:
    """The old content beside the file, under a name that no ``*.conf`` pattern takes: NAME.TIME.bak."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    for number in range(1000):
        kept = path.with_name(f"{path.name}.{stamp}{f'-{number}' if number else ''}.bak")
        try:
            # Never over an older one, and never readable by more than the file itself.
            fd = os.open(kept, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(fd, "wb") as out:
            out.write(content)
            os.fchmod(fd, stat.S_IMODE(owner.st_mode))
            out.flush()
            os.fsync(fd)
        _own(kept, owner)
        fsync_dir(kept.parent)
        return kept
    raise CapsulekitError(f"{path}: there are a thousand copies of this second already")


def _own(path: Path, owner: os.stat_result) -> None:
    with suppress(PermissionError):
        os.chown(path, owner.st_uid, owner.st_gid)


def _read(path: Path) -> tuple[Path, bytes | None]:
    """The file that a path leads to, links followed, and its content; None when there is none."""
    path = Path(os.path.realpath(path))
    try:
        if not path.is_file():
            if path.exists():
                raise CapsulekitError(f"{path} is not a regular file")
            return path, None
        if path.stat().st_size > BIGGEST:
            raise CapsulekitError(f"{path} is larger than {BIGGEST >> 20} MB: that is no configuration file")
        return path, path.read_bytes()
    except NotADirectoryError as error:
        raise CapsulekitError(f"{path}: {error.strerror}") from error


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
