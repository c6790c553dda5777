"""Which processes use an edit's mount: by their current or root folder, open files, mapped files, or programs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit.mounts import mounts, mounts_in
from capsulekit.errors import CapsulekitError
from capsulekit.files import read_bounded

PROC = Path("/proc")
MOST_NAMED = 5
OWN_KINDS = ("tmpfs", "devpts")


@dataclass(frozen=True)
class User:
    """A process that uses a mount: ``how`` says by what, such as "works in it"."""

    pid: int
    command: str
    how: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}) {self.how}"


def users(at: Path) -> list[User]:
    """Processes that use what is mounted at ``at``, by pid; also those of other mount namespaces.

    So do those that use one of our own file systems in it, such as its /tmp; /proc and /sys are the whole machine's.
    """
    devices = {at.stat().st_dev, *(m.at.stat().st_dev for m in mounts_in(at) if m.kind in OWN_KINDS)}
    found = []
    for folder in sorted((p for p in PROC.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name)):
        # A process may end while it is looked at.
        with suppress(OSError, ValueError):
            how = _how(folder, at, devices)
            if how:
                found.append(User(int(folder.name), _command(folder), how))
    return found


def mount_space(process: str = "self") -> str:
    """The mount namespace of a process, such as "mnt:[4026531841]" (namespaces(7)); raises OSError."""
    return str((PROC / process / "ns/mnt").readlink())


def refuse_elsewhere(space: str, source: str) -> None:
    """Raise CapsulekitError when the overlay ``source`` is mounted in the mount namespace ``space``, if not ours.

    The kernel lets the same upper folder be mounted twice, and then either may write over what the other wrote.
    """
    if space in ("", mount_space()):
        return
    for folder in (p for p in PROC.iterdir() if p.name.isdecimal()):
        with suppress(OSError):  # a process may end while it is looked at
            if mount_space(folder.name) != space:
                continue
            there = [m.at for m in mounts(folder / "mountinfo") if m.kind == "overlay" and m.source == source]
            if there:
                raise CapsulekitError(
                    f"it is mounted at {there[0]} in the mount namespace of {_command(folder)} (pid {folder.name})",
                    hint=f"umount or close it there, by nsenter --mount --target {folder.name}, or end that process",
                )
            return


def refuse_busy(at: Path, own: frozenset[Path]) -> None:
    """Raise CapsulekitError that names what uses the mount; mounts in it other than ``own`` count too."""
    told = [str(user) for user in users(at)]
    told += [f"{m.at} is mounted in it" for m in mounts_in(at) if m.at != at and m.at not in own]
    if told:
        more = f", and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
        raise CapsulekitError(f"{at} is in use: {', '.join(told[:MOST_NAMED])}{more}", hint="end them, then try again")


def _how(process: Path, at: Path, devices: set[int]) -> str:
    # Folders of an overlay always have its own device; of files only the mount's number can be relied on.
    for name, how in (("cwd", "works in it"), ("root", "has it as its root")):
        with suppress(FileNotFoundError):
            if (process / name).stat().st_dev in devices:
                return how
    if any(True for _ in _open_files(process, devices)):
        return "has files of it open"
    return "runs a program of it" if _maps(process, at, devices) else ""


def _open_files(process: Path, devices: set[int]) -> Iterator[int]:
    numbers = _mounts_of(process, devices)
    for fd in (process / "fdinfo").iterdir():
        with suppress(OSError):
            found = re.search(rb"^mnt_id:\s*(\d+)", fd.read_bytes(), re.MULTILINE)
            if found and int(found[1]) in numbers:
                yield int(fd.name)


def _mounts_of(process: Path, devices: set[int]) -> set[int]:
    """The numbers that the file systems of some devices have as mounts where a process lives."""
    wanted = {b"%d:%d" % (os.major(device), os.minor(device)) for device in devices}
    rows = (line.split(b" ", 3) for line in (process / "mountinfo").read_bytes().split(b"\n")[:-1])
    return {int(row[0]) for row in rows if row[2] in wanted}


def _maps(process: Path, at: Path, devices: set[int]) -> bool:
    """Whether a process has files mapped: by the device that is shown, or by path where that is a layer's."""
    start = os.fsencode(at)[1:] + b"/"
    names = {b"%02x:%02x" % (os.major(device), os.minor(device)) for device in devices}
    with (process / "maps").open("rb") as lines:
        return any(line.split(b" ", 4)[3] in names or line.partition(b"/")[2].startswith(start) for line in lines)


def _command(process: Path) -> str:
    words = read_bounded(process / "cmdline", 200).split(b"\0")
    name = words[0] or read_bounded(process / "comm", 64).strip()
    text = b" ".join([name.rpartition(b"/")[2], *words[1:3]]).decode("utf-8", "replace").strip()
    return "".join(c for c in text if c.isprintable())[:60]
