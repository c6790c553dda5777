"""mmdebstrap: the one place that calls it, for a suite's default sources and for making a root from packages."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO
from urllib.parse import quote

from capsulekit.files import sha256_bytes
from capsulekit.memory import room_for
from capsulekit.run import CLOCK, CommandFailed, failed, run, run_apart

HERE = Path(__file__).parent
PURPOSE = "build the root file system"


@cache
def version() -> str:
    """mmdebstrap's version; it decides bytes of the root, so it is noted in the lock."""
    return run(["mmdebstrap", "--version"], purpose=PURPOSE).split()[-1]


def default_sources(suite: str, arch: str, scratch: Path, components: Sequence[str] = ()) -> str:
    """The sources.list mmdebstrap writes by itself for ``suite``: recipes name a release, never a mirror.

    ``components`` are those of the archive, none: mmdebstrap's default.
    """
    scratch.chmod(0o755)
    argv: list[str] = [
        "mmdebstrap",
        "--mode=root",
        f"--architectures={arch}",
        *([f"--components={','.join(components)}"] if components else []),
        "--variant=custom",
        "--format=tar",
        "--skip=check/signed-by",
        f"--setup-hook={HERE / 'keep-sources.sh'}",
        suite,
        str(scratch / "never.tar"),
    ]
    # The hook ends mmdebstrap on purpose, before it opens a connection.
    with suppress(CommandFailed):
        _apart(argv, "learn the distribution's sources", scratch, 0, None)
    try:
        return (scratch / "sources.list").read_text()
    except FileNotFoundError:
        log = (scratch / "install.log").read_bytes()
        raise failed(argv, "learn the distribution's sources", 1, _telling(log)) from None


@dataclass(frozen=True)
class Plan:
    """What to install, and how: ``names`` out of the local repository ``repo`` and nothing else.

    ``needed`` is about how many bytes the root will take; ``work`` is scratch space.
    """

    suite: str
    arch: str
    repo: Path
    names: Sequence[str]
    variant: str
    epoch: int
    needed: int
    work: Path


def make_root(plan: Plan, out: IO[bytes]) -> None:
    """Install into a new root; stream it as a tar into ``out``. Raises CommandFailed."""
    argv: list[str] = [
        "mmdebstrap",
        "--mode=root",
        f"--architectures={plan.arch}",
        f"--variant={plan.variant}",
        "--format=tar",
        "--dpkgopt=force-unsafe-io",
        "--skip=cleanup/apt/lists,cleanup/reproducible",
        "--include=" + ",".join(plan.names),
        *_hooks(plan.variant, plan.work),
        plan.suite,
        "-",
        f"deb [trusted=yes] copy://{quote(str(plan.repo))} ./",
    ]
    _apart(argv, PURPOSE, plan.work, plan.epoch, out, room_for(plan.needed))


def _hooks(variant: str, work: Path) -> list[str]:
    """What runs beside mmdebstrap's own work, by functions of namespace/inside.lib.sh.

    ``work``/caches says how caches that hold times are made, last of all. Where `capsulekit prove` has moved the clock,
    the packages' programs see it too.
    """
    if variant == "extract":  # nothing is run in such a root
        return []
    functions = shlex.quote(str(HERE.parent / "namespace" / "inside.lib.sh"))
    hooks = [f'--customize-hook=. {functions}; make_caches "$1" {shlex.quote(str(work / "caches"))}']
    if CLOCK:
        hooks.insert(0, f'--extract-hook=. {functions}; move_clock "$1"')
        hooks.append(f'--customize-hook=. {functions}; restore_clock "$1"')
    return hooks


def add_to_root(plan: Plan, before: Path, out: IO[bytes]) -> None:
    """Install into the root in the tar ``before``; stream the new root into ``out``. Raises CommandFailed."""
    argv: list[str | Path] = [
        "sh",
        HERE / "add.sh",
        plan.work,
        before,
        quote(str(plan.repo)),
        plan.variant,
        plan.arch,
        *plan.names,
    ]
    _apart(argv, PURPOSE, plan.work, plan.epoch, out, room_for(plan.needed))


def _apart(
    argv: Sequence[str | Path], purpose: str, work: Path, epoch: int, out: IO[bytes] | None, memory: int = 0
) -> None:
    log = work / "install.log"
    env = _environment(work, epoch) | {"CAPSULEKIT_OUT": str(work)}
    with log.open("wb") as errors:
        status = run_apart(argv, purpose=purpose, env=env, cwd=work, stdout=out, stderr=errors, memory=memory)
    if status != 0:
        raise failed(argv, purpose, status, _telling(log.read_bytes()))


def _telling(log: bytes) -> bytes:
    """mmdebstrap's last lines only say that it failed; what a child printed before them says why."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if line.startswith((b"E:", b"dpkg: error", b"FATAL")) or b"No space left" in line:
            return line if line.startswith(b"E:") else b" ".join(lines[number : number + 2])
    return log


def _environment(scratch: Path, epoch: int) -> dict[str, str]:
    """Nothing of the caller's environment reaches the packages' scripts."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(scratch),
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(scratch / "mem"),
        "SOURCE_DATE_EPOCH": str(epoch),
        "DEBIAN_FRONTEND": "noninteractive",
    }


def local_repository(folder: Path, suite: str, entries: Sequence[tuple[Path, str, int, str]]) -> None:
    """Write a flat repository: ``entries`` are (package file, control text, size in bytes, sha256)."""
    stanzas = []
    for path, control, size, sha256 in entries:
        target = folder / f"{sha256}.deb"
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
        stanzas.append(f"{control.strip()}\nFilename: ./{target.name}\nSize: {size}\nSHA256: {sha256}\n")
    index = "\n".join(stanzas).encode()
    (folder / "Packages").write_bytes(index)
    # mmdebstrap asks apt for the essential packages *of the suite*, so the repository has to say that it is it.
    release = f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {sha256_bytes(index)} {len(index)} Packages\n"
    (folder / "Release").write_text(release)
