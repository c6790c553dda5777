"""Files that appear in one step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capsulekit.files import atomic_file, atomic_write, remove_parts


def test_where_nothing_can_be_written_the_wanted_file_is_named(tmp_path: Path) -> None:
    wanted = tmp_path / "none" / "a.lock"
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(wanted, b"x")
    assert (caught.value.filename, caught.value.strerror) == (str(wanted), "No such file or directory")


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    wanted = tmp_path / "a"
    atomic_write(wanted, b"old", 0o600)
    with pytest.raises(ZeroDivisionError), atomic_file(wanted) as out:
        out.write(b"new")
        raise ZeroDivisionError
    assert wanted.read_bytes() == b"old" and list(tmp_path.iterdir()) == [wanted]
    assert wanted.stat().st_mode & 0o777 == 0o600


KILLED = """import os, pathlib, signal, sys
from capsulekit.files import atomic_file
with atomic_file(pathlib.Path(sys.argv[1])) as out:
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_has_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    wanted = tmp_path / "a[1]"
    other = tmp_path / ".b.x.part"
    other.write_bytes(b"somebody's")
    subprocess.run([sys.executable, "-c", KILLED, wanted], check=False, timeout=60)
    assert len(list(tmp_path.iterdir())) == 2 and not wanted.exists()
    with atomic_file(wanted) as out:
        remove_parts(wanted)
        assert len(list(tmp_path.iterdir())) == 2, "the one that is being written, and the other"
        out.write(b"whole")
    assert wanted.read_bytes() == b"whole" and sorted(tmp_path.iterdir()) == [other, wanted]
