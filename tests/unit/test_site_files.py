"""Files of the master that others read too: what is shown, what is kept, what stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.sitefiles import Change, block, outside_block, whole, write

BEGIN, END = "# BEGIN capsulekit: these lines are written by it", "# END capsulekit: these lines are written by it"


def done(change: Change | None) -> Path | None:
    assert change is not None
    return write(change)


def test_a_new_file_is_shown_and_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "unit"
    change = whole(path, "one\ntwo\n", 0o600)
    assert change is not None
    assert change.diff == f"--- /dev/null\n+++ {path}\n@@ -0,0 +1,2 @@\n+one\n+two\n"
    assert write(change) is None
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one\ntwo\n", 0o600)
    assert whole(path, "one\ntwo\n") is None


def test_the_old_file_is_kept_beside_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "unit"
    path.write_text("mine\n")
    path.chmod(0o640)
    first = done(whole(path, "a\n"))
    second = done(whole(path, "b\n"))
    assert first is not None and second is not None and first != second
    assert (first.read_text(), second.read_text(), path.read_text()) == ("mine\n", "a\n", "b\n")
    assert {f.stat().st_mode & 0o777 for f in (first, second, path)} == {0o640}
    assert first.name.endswith(".bak")


@pytest.mark.parametrize("content", [b"", b"/srv *(ro)\n", b"# \xe4\xf6 latin-1\n/srv *(ro)\n", b"no line end"])
def test_of_a_shared_file_only_the_block_is_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exports"
    path.write_bytes(content)
    done(block(path, ["/a", "/b"]))
    glue = b"\n" if content and not content.endswith(b"\n") else b""
    assert path.read_bytes() == content + glue + f"{BEGIN}\n/a\n/b\n{END}\n".encode()
    assert block(path, ["/a", "/b"]) is None
    with path.open("ab") as file:
        file.write(b"/later *(ro)\n")
    done(block(path, ["/c"]))
    assert path.read_bytes() == content + glue + f"{BEGIN}\n/c\n{END}\n/later *(ro)\n".encode()
    assert (len(content.splitlines()) + 4, "/later *(ro)") in outside_block(path)
    done(block(path, []))
    assert path.read_bytes() == content + glue + b"/later *(ro)\n"
    assert block(path, []) is None


@pytest.mark.parametrize("marks", [[BEGIN], [END], [END, BEGIN], [BEGIN, END, BEGIN], [BEGIN, BEGIN, END, END]])
def test_marks_that_do_not_fit_together_are_refused(tmp_path: Path, marks: list[str]) -> None:
    path = tmp_path / "exports"
    text = "first\n" + "\n".join(marks) + "\n"
    path.write_text(text)
    with pytest.raises(CapsulekitError, match=r"exports:\d+: the marks"):
        block(path, ["/a"])
    assert path.read_text() == text


def test_a_file_that_changed_after_its_diff_was_shown_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "exports"
    path.write_text("a\n")
    change = block(path, ["/a"])
    assert change is not None
    path.write_text("a\nb\n")
    with pytest.raises(CapsulekitError, match="changed by somebody else"):
        write(change)
    assert path.read_text() == "a\nb\n"
    assert [f.name for f in tmp_path.iterdir()] == ["exports"]


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "exports"
    real.write_text("a\n")
    link.symlink_to(real)
    done(block(link, ["/a"]))
    assert link.is_symlink() and BEGIN in real.read_text()


def test_what_is_no_configuration_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(9 << 20)
    for name, why in (("fifo", "not a regular file"), ("large", "larger than 8 MB"), (".", "not a regular file")):
        with pytest.raises(CapsulekitError, match=why):
            whole(tmp_path / name, "x")
