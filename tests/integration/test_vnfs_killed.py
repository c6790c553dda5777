"""A command on capsules that is killed at any write leaves the old state or the new one, and can be run again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from asking_capsule import NAME, answers_file, asking_capsule, kit, stored, trusting_site
from small_capsule import small_capsule

from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths

# The command runs in a process of its own that kills itself, with no chance to clean up, before its N-th durable
# write: what it syncs, what it renames and what it takes away.
KILLED = """
import os, signal, sys
from capsulekit.cli.main import main
left = int(sys.argv[1])
def dying(real):
    def call(*args, **more):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call
for name in ("fsync", "unlink", "rename", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Case:
    """A command, and what the list of capsules may be after it was killed."""

    words: tuple[str, ...]
    outcomes: tuple[set[str], ...]


CASES = {
    "delete": Case(("delete", NAME, "-y"), ({NAME, "other"}, {"other"})),
    "clone": Case(("clone", NAME, "copy"), ({NAME, "other"}, {NAME, "other", "copy"})),
    "configure": Case(("configure", NAME, "-y", "--answers", "{answers}"), ({NAME, "other"},)),
    "import": Case(
        ("import", "{new}", "-y", "--as", "third", "--answers", "{answers}"),
        ({NAME, "other"}, {NAME, "other", "third"}),
    ),
    "export": Case(("export", NAME, "{out}", "--over"), ({NAME, "other"},)),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_write(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    paths = trusting_site(tmp_path)
    asking_capsule(tmp_path / "q.vnfs")
    small_capsule(tmp_path / "o.vnfs", version="2.0")
    asking_capsule(tmp_path / "n.vnfs", version="3.0")
    first = answers_file(tmp_path)
    assert kit(paths, "vnfs", "import", tmp_path / "q.vnfs", "-y", "--answers", first).status == 0
    assert kit(paths, "vnfs", "import", tmp_path / "o.vnfs", "--as", "other").status == 0
    answers_file(tmp_path, 'root = "anders"\nntp = "10.0.0.77"\n')
    whole = tmp_path / "whole"
    shutil.copytree(paths.state, whole)
    places = {"answers": first, "new": tmp_path / "n.vnfs", "out": tmp_path / "out.vnfs"}
    words = [word.format(**places) for word in case.words]
    killed = 0
    while True:
        shutil.rmtree(paths.state)
        shutil.copytree(whole, paths.state)
        site = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs"]
        argv = [sys.executable, "-c", KILLED, str(killed), *site, *words]
        status = subprocess.run(argv, capture_output=True, check=False, timeout=120)
        if status.returncode == 0:
            break
        assert status.returncode == -signal.SIGKILL, status.stderr
        check(paths, case, words)
        killed += 1
    assert killed >= 2, "it wrote nothing"


def check(paths: SitePaths, case: Case, words: list[str]) -> None:
    """Every capsule that is listed is whole; the same command again, or none, ends well; nothing half is left."""
    listed = set(kit(paths, "vnfs", "list").out.split())
    assert listed in case.outcomes
    done = kit(paths, "vnfs", "verify", *sorted(listed))
    assert done.status == 0, done.err
    assert all(sha256_file(blob) == blob.name for blob in (paths.state / "blobs").glob("??/[0-9a-f]*"))
    again = kit(paths, "vnfs", *words)
    gone = words[0] == "delete" and listed == {"other"}
    taken = words[0] == "clone" and "copy" in listed
    assert again.status == (1 if gone or taken else 0), again.err
    # Whatever the killed one left is taken away with the next delete.
    assert kit(paths, "vnfs", "delete", *kit(paths, "vnfs", "list").out.split(), "-y").status == 0
    assert stored(paths) == []
