"""Builds run by tests as their author would run them, and a look at what they leave behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import built

from capsulekit.cache import default_cache_dir
from capsulekit.capsule.read import open_capsule

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
PROGRAM = Path(sys.executable).with_name("capsulekit")


def sh(*argv: str | Path, timeout: float = 300, **how: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever that is."""
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, timeout=timeout, **how)  # type: ignore[call-overload, no-any-return]


def ok(*argv: str | Path, **how: object) -> str:
    done = sh(*argv, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_words(recipe: Path, out: Path, cache: Path, *more: str | Path) -> list[str]:
    words = [PROGRAM, "build", recipe, "-o", out, "--key", built.author_key(), "--cache-dir", cache, *more]
    return [str(w) for w in words]


def cold_cache(where: Path, *kept: str, indexes: bool = False, of: Path | None = None) -> Path:
    """A cache with the downloaded packages of another (the machine's) and of its results only the steps ``kept``.

    With ``indexes`` it shares the archive's indexes too, which takes seconds off a build without a lock.
    """
    theirs = of or default_cache_dir()
    shutil.copytree(theirs / "packages", where / "packages", copy_function=_link)
    if indexes:
        (where / "apt").symlink_to((theirs / "apt").resolve())
    for step in (p for name in kept for p in (theirs / "steps").glob(f"{name}-*")):
        shutil.copytree(step, where / "steps" / step.name, copy_function=_link)
    return where


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def lock_of(capsule: Path, folder: Path) -> Path:
    with open_capsule(capsule) as opened:
        (folder / "its.lock").write_bytes(opened.read_member("capsule.lock"))
    return folder / "its.lock"


def unpacked(capsule: Path, folder: Path) -> Path:
    folder.mkdir()
    ok("tar", "-C", folder, "-xf", capsule)
    return folder


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> str:
    """One clear line and mostly a hint, the status of cli.md, nothing on stdout."""
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert done.stdout == "" and lines and len(lines) <= 2, done.stderr
    assert lines[0].startswith("ERROR: ") and "Traceback" not in done.stderr
    assert len(lines) == 1 or lines[1].startswith("       ")
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


def mounts(folder: Path) -> list[str]:
    """What is mounted below a folder, in any namespace of the machine."""
    found = set()
    for table in {ns.readlink(): ns.parent.parent / "mounts" for ns in _each("ns/mnt")}.values():
        with suppress(OSError):  # it has just ended
            found |= {line for line in table.read_text().splitlines() if f"{folder}/" in f"{line.split()[1]}/"}
    return sorted(found)


def running(folder: Path) -> list[str]:
    """Processes that have a folder on their command line or are in it; not those that called this."""
    ours, here = set(), os.getpid()
    while here:
        ours.add(here)
        here = int(Path(f"/proc/{here}/stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for process in _each("cmdline"):
        with suppress(OSError):
            words = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            inside = [str((process.parent / link).readlink()) for link in ("cwd", "root")]
            if any(str(folder) in text for text in (words, *inside)) and int(process.parent.name) not in ours:
                found.append(words or process.parent.name)
    return found


@contextmanager
def adopting() -> Iterator[Callable[[], list[str]]]:
    """What is orphaned meanwhile becomes a child of ours (prctl(2)), wherever it hides: the command lines of those.

    What this process had started before (multiprocessing keeps a helper until its end) is none of theirs.
    """
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = _below(os.getpid()).keys()
    try:
        yield lambda: [
            words for number, (words, state) in _below(os.getpid()).items() if state != "Z" and number not in before
        ]
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _below(process: int) -> dict[int, tuple[str, str]]:
    """Command line and state (proc(5)) of all that this process has started, and of what those have."""
    found: dict[int, tuple[str, str]] = {}
    for stat in _each("stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if int(rest.split()[1]) == process:
                words = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                found |= {int(stat.parent.name): (words or name, rest.split()[0])} | _below(int(stat.parent.name))
    return found


def _each(name: str) -> Iterator[Path]:
    """That file of every process that can be looked at."""
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        with suppress(OSError):
            path.stat()
            yield path


def nothing_left(folder: Path, cache: Path) -> None:
    assert [p.name for p in folder.iterdir() if p.suffix in (".vnfs", ".part") or p.name.startswith(".")] == []
    assert [p.name for p in (cache / "tmp").iterdir() if p.name != ".lock"] == []
    assert not [p for p in (cache / "steps").iterdir() if p.is_dir() and not (p / ".step.json").exists()]
    assert mounts(folder) == [] and mounts(cache) == []
    assert running(folder) == []


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not (found := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
