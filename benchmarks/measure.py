"""Runs whole command lines and says what they cost; prints one line a figure, beside the peer's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import Peak, Watch

# Beside the Python that runs us, as in any virtual environment.
CAPSULEKIT = Path(sys.executable).with_name("capsulekit")


class Failed(Exception):
    """A command ended badly; the text is its last words."""


@dataclass(frozen=True)
class Cost:
    """One finished command: wall seconds, CPU seconds (user and system, its children's too), and what it printed.

    ``peak`` is its memory, where that was watched.
    """

    seconds: float
    cpu: float
    said: str
    peak: Peak | None = None


def measure(argv: Sequence[str | Path], *, cwd: Path | None = None, watched: bool = False) -> Cost:
    """Run a command to its end; raises Failed with its last lines. Watching its memory costs it a little time."""
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        child = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            with Watch(child.pid, watched) as watch:
                # wait4(2) counts the children that the command itself has waited for, and theirs.
                _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.terminate()  # it clears away what it has begun
            child.wait()
            raise
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode("utf-8", "replace").strip()
    if child.returncode != 0:
        raise Failed(
            "\n".join([f"{Path(argv[0]).name} failed with status {child.returncode}", *text.splitlines()[-5:]])
        )
    return Cost(seconds, usage.ru_utime + usage.ru_stime, text, watch.peak if watched else None)


def capsulekit(*words: str | Path, watched: bool = False) -> Cost:
    """Run our own command line, as its user would."""
    return measure([CAPSULEKIT, *words], watched=watched)


@contextlib.contextmanager
def mount_point(path: Path) -> Iterator[None]:
    """A folder to mount on; what of it this machine had not is removed afterwards."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            folder.rmdir()


def new_key(folder: Path) -> Path:
    """An author's key pair of its own in ``folder``, made once."""
    key = folder / "author"
    if not key.exists():
        capsulekit("keygen", key, "--no-password")
    return key


def step_seconds(cost: Cost, step: str) -> float:
    """Seconds of one step of a build that was asked for JSON."""
    steps: list[dict[str, Any]] = json.loads(cost.said)["steps"]
    return float(sum(s["seconds"] for s in steps if s["name"] == step))


def row(
    name: str,
    seconds: float,
    *,
    peer: tuple[str, float] | None = None,
    aim: tuple[str, float] | None = None,
    note: str = "",
) -> None:
    """One line: seconds, their ratio to the peer's (name, seconds), the aim (in words, in seconds), a remark."""
    ratio = f"{seconds / peer[1]:6.2f} x {peer[0]}" if peer else ""
    met = f"aim {aim[0]}: {'met' if seconds <= aim[1] else 'MISSED'}" if aim else ""
    print(f"  {name:<50} {seconds:7.1f} s  {ratio:<20}  {met:<28}  {note}".rstrip())


def megabytes(path: Path) -> float:
    """The size of a file in MB of 10^6 bytes."""
    return path.stat().st_size / 1e6
