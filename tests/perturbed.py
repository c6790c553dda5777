"""Runs a command as if on another machine: other day, host name, time zone, locale, umask, home, folder, one core."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
# faketime's own way is an environment variable, which a build keeps from its children on purpose. ld.so.preload reaches
# every program of this mount namespace. (Programs inside the new root have the real clock: later, if not another day.)
INSIDE = """set -eu
umask 077
mount --make-rprivate /
mount -t overlay none -o lowerdir="$1":/etc /etc
hostname perturbed
cd "$2"
shift 2
exec "$@"
"""


def available() -> bool:
    """Root, and faketime's library."""
    return os.geteuid() == 0 and Path(LIBRARY).exists()


def run(folder: Path, *argv: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` in the new folder ``folder`` under all perturbations at once."""
    etc = folder / "etc"
    home = folder / "another home"
    for made in (folder, etc, home):
        made.mkdir()
    (etc / "ld.so.preload").write_text(LIBRARY + "\n")
    (etc / "faketimerc").write_text("+400d\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "POSIX",
        "LANGUAGE": "tr",
        "USER": "somebody",
        "SHELL": "/bin/false",
        "FAKETIME_DONT_RESET": "1",
        "PYTHONHASHSEED": "12345",
    }
    guard = ["unshare", "--mount", "--uts", "taskset", "-c", "0", "sh", "-c", INSIDE, "sh", etc, home]
    return subprocess.run(
        [*guard, *argv], env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )  # fmt: skip
