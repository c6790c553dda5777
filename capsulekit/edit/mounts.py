"""What is mounted (proc_pid_mountinfo(5)), and `mount`, for overlays, and for layers with a loop device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit import syscalls
from capsulekit.errors import CapsulekitError
from capsulekit.run import PLAIN, removing, run

MOUNTS = Path("/proc/self/mountinfo")
PURPOSE = "mount a capsule's layers"
# Nothing in a layer that names places of another layer: what is stored must mean the same on every node.
OVERLAY = "redirect_dir=off,metacopy=off,index=off,xino=off"
# Where everybody may look: what has setuid bits or device nodes in a capsule is nothing that a user of this machine may
# run or open.
GUARDED = "nosuid,nodev"
MOST_OPTIONS = 4095  # bytes: mount(2) takes one page of options


@dataclass(frozen=True)
class Mount:
    """One mount of this process's namespace: ``device`` is "MAJOR:MINOR", ``at`` where it is."""

    number: int
    device: str
    at: Path
    kind: str
    source: str


def mounts(table: Path = MOUNTS) -> list[Mount]:
    """All mounts, each after what it is mounted on."""
    found = []
    for line in table.read_bytes().split(b"\n")[:-1]:
        words = line.split(b" ")  # the only two that are escaped in names; a user may have mounted at "a\rb"
        dash = words.index(b"-", 6)
        at, kind, source = (os.fsdecode(_unescaped(words[n])) for n in (4, dash + 1, dash + 2))
        found.append(Mount(int(words[0]), words[2].decode(), Path(at), kind, source))
    return found


def _unescaped(word: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), word)


def real_path(path: Path) -> Path:
    """An absolute path without links. Where they go in a circle it is as it was: whatever uses it then says so."""
    return Path(os.path.realpath(path))


def mounted_at(place: Path) -> Mount | None:
    """What is mounted just there (the topmost), or None."""
    real = real_path(place)  # the kernel tells places without links
    return next((m for m in reversed(mounts()) if m.at == real), None)


def mounts_in(folder: Path) -> Iterator[Mount]:
    """Mounts at or below a folder, the last made first."""
    real = real_path(folder)
    return (m for m in reversed(mounts()) if m.at.is_relative_to(real))


def mount_layer(image: Path, at: Path, offset: int = 0, size: int = 0) -> None:
    """Mount a squashfs that lies in a file (``offset`` and ``size`` in bytes, size 0: to its end) read-only.

    The loop device is set to go with its last user, so that nothing is left of it however we end.
    """
    options = "loop,ro" + (f",offset={offset}" if offset else "") + (f",sizelimit={size}" if size else "")
    run(["mount", "-t", "squashfs", "-o", options, "--", image, at], purpose=PURPOSE, env=ENV)


def mount_overlay(folder: Path, lower: list[str], at: Path, source: str, *, upper: str = "", work: str = "") -> None:
    """Mount an overlay of folders named relative to ``folder``, topmost first; without ``upper`` it is read-only.

    ``source`` is the name that the mount bears. Raises CapsulekitError.
    """
    options = f"lowerdir={':'.join(lower)},{OVERLAY}"
    options += f",upperdir={upper},workdir={work}" if upper else ",ro"
    options += f",{GUARDED}"
    if len(options) > MOST_OPTIONS:
        raise CapsulekitError(f"so many layers ({len(lower)}) can't be mounted at once", hint="umount with --flatten")
    argv: list[str | Path] = ["mount", "-t", "overlay", "-o", options, "--", source, at]
    run(argv, purpose=PURPOSE, cwd=folder, env=ENV)


def unmount_all(folder: Path, *, lazily: bool = False) -> None:
    """Unmount all at or below a folder of our own; raises OSError where something is in use."""
    while found := next(mounts_in(folder), None):
        try:
            syscalls.unmount(found.at)
        except OSError:
            if not lazily:
                raise
            syscalls.unmount(found.at, syscalls.NOFOLLOW | syscalls.DETACH)


def read_only(at: Path, on: bool) -> None:
    """Make what is mounted there read-only as a whole, or writable again; raises OSError (EBUSY: open for writing)."""
    guarded = syscalls.NOSUID | syscalls.NODEV
    syscalls.mount("none", at, "", syscalls.REMOUNT | guarded | (syscalls.RDONLY if on else 0))


def remove_tree(*folders: Path) -> None:
    """Remove folders (or files) of our own with all in them, on their own file system only.

    Nothing may be mounted in them. Raises CapsulekitError.
    """
    for folder in folders:
        if any(True for _ in mounts_in(folder)):
            raise CapsulekitError(f"something is still mounted in {folder}")
    if folders:
        run(removing(*folders), purpose="clean up", env=ENV)


ENV = {**PLAIN, "LC_ALL": "C"}
