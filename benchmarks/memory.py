"""The memory a command takes while it runs: that of all its processes, and of the file systems in memory they mount."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PERIOD = 0.05  # seconds from sample to sample
PROC = Path("/proc")


@dataclass(frozen=True)
class Peak:
    """The most that any sample saw, in bytes: resident sets of the command's first process (``own``) and of all its
    ``processes`` together, and the used blocks of its ``tmpfs``.

    A resident set is anonymous memory and mapped files, so a library that two processes share counts twice. Pages of a
    tmpfs that are mapped count as tmpfs only. The kernel's page cache of files on a disk is nobody's and not counted.
    """

    own: int = 0
    processes: int = 0
    tmpfs: int = 0


class Watch:
    """Samples a process and all its descendants until the ``with`` ends; ``peak`` is there afterwards.

    Needs root to look into other mount namespaces. With ``really`` False nothing is sampled.
    """

    def __init__(self, pid: int, really: bool) -> None:
        self.peak = Peak()
        self._pid, self._really, self._over = pid, really, threading.Event()
        self._mounts = (PROC / "self/ns/mnt").stat().st_ino
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        if self._really:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._really:
            self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(PERIOD):
            resident, blocks = dict[int, int](), dict[int, int]()
            seen = {self._mounts}
            for pid in _family(self._pid):
                with suppress(OSError, ValueError, IndexError):  # it has just ended
                    resident[pid] = _resident(pid)
                    namespace = (PROC / str(pid) / "ns/mnt").stat().st_ino
                    if namespace not in seen:
                        blocks.update(_tmpfs(pid))
                        # A process that has changed its root sees only a part: look again through the others.
                        if (PROC / str(pid) / "root").samefile("/"):
                            seen.add(namespace)
            seen_now = (resident.get(self._pid, 0), sum(resident.values()), sum(blocks.values()))
            before = (self.peak.own, self.peak.processes, self.peak.tmpfs)
            self.peak = Peak(*map(max, before, seen_now))


def _family(first: int) -> Iterator[int]:
    """A process and its descendants, by the parents that /proc tells (proc_pid_stat(5))."""
    children = defaultdict(list)
    for process in PROC.iterdir():
        if process.name.isdigit():
            with suppress(OSError, IndexError):
                # The name of the program stands in brackets and may hold anything.
                fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
                children[int(fields[1])].append(int(process.name))
    todo = [first]
    while todo:
        pid = todo.pop()
        yield pid
        todo += children[pid]


def _resident(pid: int) -> int:
    """Bytes of anonymous memory and mapped files; what is shared memory is a tmpfs's."""
    lines = dict(line.split(":", 1) for line in (PROC / str(pid) / "status").read_text(errors="replace").splitlines())
    return sum(int(lines[key].split()[0]) << 10 for key in ("RssAnon", "RssFile") if key in lines)


def _tmpfs(pid: int) -> Iterator[tuple[int, int]]:
    """The tmpfs file systems a process sees that we do not: device number and bytes used."""
    ours = {Path(line.split()[4]).stat().st_dev for line in _mounted("self")}
    for line in _mounted(str(pid)):
        with suppress(OSError):
            at = Path(f"/proc/{pid}/root{line.split()[4]}")
            device = at.stat().st_dev
            if device not in ours:
                used = os.statvfs(at)
                yield device, (used.f_blocks - used.f_bfree) * used.f_frsize


def _mounted(pid: str) -> list[str]:
    """The lines of a process's mountinfo that tell of a tmpfs (proc_pid_mountinfo(5))."""
    return [line for line in (PROC / pid / "mountinfo").read_text().splitlines() if " - tmpfs " in line]
