"""The lock of an edit: whoever lives and holds it is named; what a killed holder leaves of it passes by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capsulekit.edit.record import lock
from capsulekit.errors import CapsulekitError

# Holds the lock, and has a child of its own that holds it too, as between fork and exec, until its input ends.
HOLDER = """
import os, sys
from pathlib import Path
from capsulekit.edit.record import lock
with lock(Path(sys.argv[1]), "big-1.amd64"):
    if os.fork() == 0:
        print(os.getppid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    sys.stdin.close()
    os.wait()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert int(child.stdout.readline()) == child.pid
    return child


def test_who_lives_and_holds_it_is_named_at_once(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    try:
        with pytest.raises(CapsulekitError, match=f"process {holder.pid}"), lock(tmp_path, "big-1.amd64"):
            pass
    finally:
        holder.communicate("")


def test_what_a_killed_holder_left_passes_by_itself(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert holder.stdin is not None
    assert holder.stdout is not None
    with pytest.MonkeyPatch.context() as patched:
        # Its child ends while we wait, not by the clock.
        patched.setattr("time.sleep", lambda _seconds: holder.stdin.close() if holder.stdin else None)
        with lock(tmp_path, "big-1.amd64") as folder:
            assert folder.parent == tmp_path / "edits"
    holder.stdout.close()
