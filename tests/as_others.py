"""Runs a program as somebody else than root: a user with subordinate ids, or the root of a container.

All in a mount namespace of its own: the machine's /etc, users and folders are not touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

UID = 4242
# Python and the project may lie in folders that only root may enter: they are shown there, below empty ones.
INSIDE = """set -eu
mount --make-rprivate /
mount -t overlay none -o lowerdir="$1":/etc /etc
stage=/mnt
mount -t tmpfs -o mode=0755 none "$stage"
shift
number=0
while [ "$1" != -- ]; do
    mkdir "$stage/$number"
    mount --rbind "$1" "$stage/$number"
    number=$((number + 1))
    shift
done
shift
while [ "$1" != -- ]; do
    mount -t tmpfs -o mode=0755 none "$1"
    shift
done
shift
number=0
while [ "$1" != -- ]; do
    mkdir -p "$1"
    mount --rbind "$stage/$number" "$1"
    number=$((number + 1))
    shift
done
shift
cd "$1"
shift
exec "$@"
"""


def needed() -> list[str]:
    """The folders a program of ours needs to see: Python's own, and the project's."""
    found = {sys.base_prefix, str(Path(__file__).resolve().parent.parent)}
    return sorted(found)


def hiding(folders: list[str], *others: Path) -> list[str]:
    """The topmost folders on the way to ``folders`` that others may not enter."""
    found = set()
    for folder in (*folders, *map(str, others)):
        for parent in reversed(Path(folder).parents):
            if not parent.stat().st_mode & 0o001:
                found.add(str(parent))
                break
    return sorted(found)


def run(home: Path, *argv: str | Path, contained: bool = False, subids: bool = True,
        timeout: float = 600) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run ``argv`` in ``home``, which becomes the user's: as uid 4242 or, ``contained``, as root of their namespace."""
    etc = home.parent / "as-others-etc"
    etc.mkdir(exist_ok=True)
    for name in ("passwd", "group"):
        (etc / name).write_text(Path("/etc", name).read_text())
    with (etc / "passwd").open("a") as f:
        f.write(f"builder:x:{UID}:{UID}::{home}:/bin/sh\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text("builder:200000:65536\n" if subids else "")
    os.chown(home, UID, UID)
    show = [*needed(), str(home)]
    covered = hiding(show)
    # What lies below a covered folder has to be shown again; the rest is there anyway.
    again = [f for f in show if any(f.startswith(f"{c}/") for c in covered)]
    root = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--mount-proc",
            "--kill-child"]  # fmt: skip
    user = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        INSIDE,
        "sh",
        etc,
        *again,
        "--",
        *covered,
        "--",
        *again,
        "--",
        home,
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    return subprocess.run(
        [*map(str, words), *user, *(root if contained else []), *map(str, argv)],
        env=env, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
