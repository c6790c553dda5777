"""Files that appear in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsulekit.files import atomic_file, atomic_write


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
