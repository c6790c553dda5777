"""mmdebstrap: the one place that calls it, for a suite's default sources and for making a root from packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO
from urllib.parse import quote

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from capsulekit.run import CommandFailed, failed, run, run_apart

HERE = Path(__file__).parent
PURPOSE = "build the root file system"


@cache
def version() -> str:
    """mmdebstrap's version; it decides bytes of the root, so it is noted in the lock."""
    return run(["mmdebstrap", "--version"], purpose=PURPOSE).split()[-1]


def default_sources(suite: str, arch: str, scratch: Path) -> str:
    """The sources.list mmdebstrap writes by itself for ``suite``: recipes name a release, never a mirror."""
    env = _environment(scratch, 0) | {"CAPSULEKIT_OUT": str(scratch)}
    argv = [
        "mmdebstrap",
        f"--mode={_mode()}",
        f"--architectures={arch}",
        "--variant=custom",
        "--format=tar",
        f"--setup-hook={HERE / 'keep-sources.sh'}",
        suite,
        str(scratch / "never.tar"),
    ]
    try:
        run(argv, purpose="learn the distribution's sources", env=env, cwd=scratch)
    except CommandFailed as stopped:
        # The hook ends mmdebstrap on purpose, before it opens a connection.
        if not (scratch / "sources.list").exists():
            raise stopped from None
    return (scratch / "sources.list").read_text()


def make_root(
    suite: str, arch: str, repo: Path, names: Sequence[str], variant: str, epoch: int, work: Path, out: IO[bytes]
) -> None:
    """Install from the local repository ``repo`` and nothing else; stream the finished root as a tar into ``out``.

    ``work`` holds what customize.sh needs (see there) and is mmdebstrap's scratch space. Raises CommandFailed.
    """
    env = _environment(work, epoch) | {"CAPSULEKIT_WORK": str(work)}
    # The extract variant installs nothing, so for mmdebstrap there is nothing to customize either.
    hook = "extract" if variant == "extract" else "customize"
    argv: list[str] = [
        "mmdebstrap",
        f"--mode={_mode()}",
        f"--architectures={arch}",
        f"--variant={variant}",
        "--format=tar",
        "--dpkgopt=force-unsafe-io",
        "--skip=cleanup/apt/lists",
        "--include=" + ",".join(names),
        f"--{hook}-hook={HERE / 'customize.sh'}",
        suite,
        "-",
        f"deb [trusted=yes] copy://{quote(str(repo))} ./",
    ]
    log = work / "mmdebstrap.log"
    with log.open("wb") as errors:
        status = run_apart(argv, purpose=PURPOSE, env=env, cwd=work, stdout=out, stderr=errors)
    if status != 0:
        raise failed(argv, PURPOSE, status, _telling(log.read_bytes()))


def _telling(log: bytes) -> bytes:
    """mmdebstrap's last lines only say that it failed; what a child printed before them says why."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if line.startswith((b"E:", b"dpkg: error", b"FATAL")) or b"No space left" in line:
            return line if line.startswith(b"E:") else b" ".join(lines[number : number + 2])
    return log


def _mode() -> str:
    if os.geteuid() != 0:
        raise CapsulekitError("building a root file system needs root", hint="run the same command with sudo")
    return "root"


def _environment(scratch: Path, epoch: int) -> dict[str, str]:
    """Nothing of the caller's environment reaches the packages' scripts."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(scratch),
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
