"""Child processes: no shell, a clear error, nothing left running."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.run import CommandFailed, DiskFull, Interrupted, ToolMissing, failed, run, run_bounded, tool


def test_stdout_is_returned_and_arguments_are_never_a_shells() -> None:
    assert run(["echo", "$HOME; `id`", "*"], purpose="print") == "$HOME; `id` *\n"


def test_stdin_is_given_or_empty(tmp_path: Path) -> None:
    assert run(["cat"], purpose="read", stdin=b"hello") == "hello"
    assert run(["cat"], purpose="read") == ""
    (tmp_path / "f").write_bytes(b"from a file")
    with (tmp_path / "f").open("rb") as source:
        assert run(["cat"], purpose="read", stdin=source) == "from a file"


def test_folder_and_environment_are_the_given_ones(tmp_path: Path) -> None:
    assert run(["pwd"], purpose="look", cwd=tmp_path).strip() == str(tmp_path)
    assert run(["env"], purpose="look", env={"A": "1"}) == "A=1\n"


def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    assert run(["printf", r"\377x"], purpose="print") == "�x"


def test_a_failure_says_what_for_how_and_what_to_paste() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo talk; echo noise >&2; echo 'E: the cause' >&2; echo tail >&2; exit 7"], purpose="do it")
    assert caught.value.message == "could not do it: sh failed with status 7: E: the cause"
    assert caught.value.hint and caught.value.hint.startswith("try it by hand: sh -c 'echo talk;")
    assert (caught.value.status, caught.value.exit_code) == (7, 1)
    assert "talk" in caught.value.output and "noise" in caught.value.output


def test_a_silent_failure_and_a_signal_are_still_told() -> None:
    with pytest.raises(CommandFailed, match="failed with status 1: it printed nothing"):
        run(["false"], purpose="try")
    with pytest.raises(CommandFailed, match="failed with status -9"):
        run(["sh", "-c", "kill -9 $$"], purpose="try")


@pytest.mark.parametrize(
    "text", ["cp: write error: No space left on device", "E: You don't have enough free space in /x"]
)
def test_a_full_disk_is_told_apart(text: str) -> None:
    error = failed(["apt-get"], "download", 100, text.encode())
    assert isinstance(error, DiskFull) and error.message == "could not download: the disk is full"
    assert error.hint and "--cache-dir" in error.hint


def test_a_very_long_command_is_shown_by_its_beginning() -> None:
    error = failed(["apt-get", *["package"] * 500], "install", 1, b"")
    assert error.hint and len(error.hint) < 500 and error.hint.endswith(" …")


def test_a_missing_program_names_its_package_and_its_use() -> None:
    with pytest.raises(ToolMissing, match="no-such-program is not installed; it is needed to fly"):
        run(["no-such-program"], purpose="fly")


def test_programs_in_the_system_folders_are_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert tool("depmod", "index").endswith("/depmod")
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(ToolMissing) as caught:
        tool("sqfstar", "write layers")
    assert caught.value.hint == "apt-get install squashfs-tools"


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(CapsulekitError, match=r"sleep did not finish within 0\.2 s \(to wait\)"):
        run(["sleep", "60"], purpose="wait", timeout=0.2)
    assert time.monotonic() - began < 20


APART = """
import sys, threading, time
from pathlib import Path
from capsulekit.run import run_apart, stop_apart
def go():
    with open("out", "wb") as out:
        status = run_apart(["sh", "-c", sys.argv[1]], purpose="try", env={"PATH": "/usr/bin:/bin"}, cwd=Path("."),
                           stdout=out, stderr=out)
    print("status", status, flush=True)
t = threading.Thread(target=go)
t.start()
if len(sys.argv) > 2:
    time.sleep(float(sys.argv[2]))
    stop_apart()
t.join()
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a process-id namespace")


def apart(folder: Path, script: str, *more: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    words = [*before, sys.executable, "-c", APART, script, *more]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)


def sleepers(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", mark.encode()]:
            found.append(folder.name)
    return found


@needs_root
@pytest.mark.parametrize("before", [(), ("nohup",)], ids=["at-a-terminal", "under-nohup"])
def test_a_program_that_hangs_up_its_whole_group_does_not_hit_us(tmp_path: Path, before: tuple[str, ...]) -> None:
    with apart(tmp_path, "umask; kill -HUP 0; sleep 60", before=before) as child:
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 0 and out.startswith("status ") and out != "status 0\n"
    assert (tmp_path / "out").read_text() == "0022\n"


@needs_root
@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_when_we_are_killed_nothing_of_it_goes_on(tmp_path: Path, how: str) -> None:
    mark = f"987{os.getpid()}"
    with apart(tmp_path, f"(setsid sleep {mark} &); trap '' HUP TERM; sleep {mark}") as child:
        deadline = time.monotonic() + 30
        while len(sleepers(mark)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(sleepers(mark)) == 2
        getattr(child, how)()
        child.wait(30)
    deadline = time.monotonic() + 10
    while sleepers(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sleepers(mark) == []


@needs_root
def test_another_thread_can_stop_it(tmp_path: Path) -> None:
    with apart(tmp_path, "sleep 600", "0.5") as child:
        out, _ = child.communicate(timeout=60)
    assert out == "status -9\n"


# --- programs whose words come from another machine


def bounded(script: str, tmp_path: Path, **more: Any) -> bytes:
    with (tmp_path / "out").open("w+b") as out:
        run_bounded(["sh", "-c", script], out, purpose="ask", **{"most": 1000, "timeout": 30.0, **more})
        out.seek(0)
        return out.read()


def test_what_another_machine_says_is_taken_up_to_a_bound(tmp_path: Path) -> None:
    assert bounded("printf x; echo noise >&2", tmp_path) == b"x"
    assert len(bounded("head -c 1000 /dev/zero", tmp_path)) == 1000
    with pytest.raises(CapsulekitError, match="it sent more than 1000 bytes"):
        bounded("exec cat /dev/zero", tmp_path)


def test_of_its_errors_the_end_is_kept_however_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        bounded("yes 0123456789 | head -c 3000000 >&2; echo the cause >&2; exit 9", tmp_path)
    assert (caught.value.status, caught.value.output.endswith("the cause")) == (9, True)
    assert len(caught.value.output) <= 16 << 10


@pytest.mark.parametrize("script", ["exec sleep 60", "exec >&- 2>&-; exec sleep 60"])
def test_one_that_takes_too_long_is_ended(script: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(CapsulekitError, match=r"sh did not finish within 0\.5 s \(to ask\)"):
        bounded(script, tmp_path, timeout=0.5)
    assert time.monotonic() - began < 20


def test_one_is_ended_when_the_command_as_a_whole_ends(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        bounded("exec sleep 60", tmp_path, stop=stop)
    assert time.monotonic() - began < 20
