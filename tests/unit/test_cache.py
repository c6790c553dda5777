"""The cache: nothing in it is used unchecked, a step is made once, a failed or killed one leaves nothing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from capsulekit import cache as module
from capsulekit.cache import Cache, code_identity, default_cache_dir
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes

FORK = multiprocessing.get_context("spawn")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class Maker:
    """Makes a two-file result and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "one").write_bytes(b"1")
        (folder / "two").write_bytes(b"2" * 1000)


def leftovers(cache: Cache) -> list[str]:
    return [p.name for sub in ("tmp", "steps") for p in (cache.root / sub).iterdir() if not p.name.endswith(".lock")]


def test_the_same_inputs_are_made_once_and_others_anew(cache: Cache) -> None:
    make = Maker()
    first = cache.step("s", {"a": 1, "b": [2]}, make)
    again = cache.step("s", {"b": [2], "a": 1}, make)
    assert (make.times, first.reused, again.reused) == (1, False, True)
    assert again.digest("two") == sha256_bytes(b"2" * 1000)
    assert cache.step("s", {"a": 1, "b": [3]}, make).identity != first.identity
    assert cache.step("t", {"a": 1, "b": [2]}, make).identity != first.identity
    assert make.times == 3


DAMAGES = {
    "a flipped byte": lambda f: (f / "two").write_bytes(b"2" * 999 + b"3"),
    "a truncated file": lambda f: (f / "two").write_bytes(b"2"),
    "a missing file": lambda f: (f / "one").unlink(),
    "an extra file": lambda f: (f / "three").write_bytes(b""),
    "a folder for a file": lambda f: ((f / "one").unlink(), (f / "one").mkdir()),
    "no record": lambda f: (f / ".step.json").unlink(),
    "a broken record": lambda f: (f / ".step.json").write_text("{"),
    "a record that is a list": lambda f: (f / ".step.json").write_text("[]"),
    "a record of lists": lambda f: (f / ".step.json").write_text('{"files": []}'),
    "an empty record": lambda f: (f / ".step.json").write_text("{}"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_is_made_again(cache: Cache, name: str) -> None:
    make = Maker()
    DAMAGES[name](cache.step("s", {}, make).folder)
    again = cache.step("s", {}, make)
    assert (make.times, again.reused) == (2, False)
    assert sorted(p.name for p in again.folder.iterdir()) == [".step.json", "one", "two"]
    assert cache.step("s", {}, make).reused


def test_a_failing_step_leaves_nothing(cache: Cache) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise CapsulekitError("no")

    with pytest.raises(CapsulekitError, match="no"):
        cache.step("s", {}, make)
    assert leftovers(cache) == []


def test_a_full_disk_is_said_with_the_way_out(cache: Cache) -> None:
    def make(folder: Path) -> None:
        with (folder / "x").open("wb", buffering=0) as out, Path("/dev/full").open("wb", buffering=0) as full:
            out.write(b"x")
            full.write(b"x")

    with pytest.raises(CapsulekitError, match="the disk is full") as caught:
        cache.step("s", {}, make)
    assert caught.value.hint and "--cache-dir" in caught.value.hint
    assert leftovers(cache) == []


def slow(root: Path, log: Path) -> None:
    def make(folder: Path) -> None:
        with log.open("a") as out:
            out.write("made\n")
        time.sleep(0.5)
        (folder / "x").write_bytes(b"x")

    Cache(root).step("s", {}, make)


def test_two_processes_that_want_the_same_step_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [FORK.Process(target=slow, args=(tmp_path / "cache", log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "made\n"


def stuck(root: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "x").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)

    Cache(root).step("s", {}, make)


def test_a_killed_build_blocks_nobody_and_its_scratch_is_swept(tmp_path: Path) -> None:
    killed = FORK.Process(target=stuck, args=(tmp_path / "cache",))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert [p for p in (tmp_path / "cache/tmp").iterdir() if p.name != ".lock"]
    cache = Cache(tmp_path / "cache")
    assert leftovers(cache) == []
    assert not cache.step("s", {}, Maker()).reused


def test_the_scratch_of_a_build_that_runs_is_left_alone(cache: Cache) -> None:
    with cache.scratch() as mine:
        (mine / "x").write_bytes(b"x")
        Cache(cache.root)
        assert (mine / "x").exists()
    assert leftovers(cache) == []


def test_packages_are_checked_on_the_way_in_and_at_every_use(cache: Cache, tmp_path: Path) -> None:
    good = sha256_bytes(b"deb")
    (tmp_path / "a.deb").write_bytes(b"deb")
    cache.add_package(tmp_path / "a.deb", good)
    assert cache.has_package(good) and not cache.has_package("0" * 64)
    cache.package(good).unlink()
    cache.package(good).write_bytes(b"dbe")
    assert not cache.has_package(good) and not cache.package(good).exists()
    with pytest.raises(CapsulekitError, match=r"a\.deb: the downloaded package has digest"):
        cache.add_package(tmp_path / "a.deb", "0" * 64)
    assert not (tmp_path / "a.deb").exists(), "or the next try would find it again"


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CapsulekitError, match="cannot be written: Not a directory") as caught:
        Cache(tmp_path / "file" / "cache")
    assert caught.value.hint and "--cache-dir" in caught.value.hint


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSULEKIT_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache_dir() == Path("/a")
    monkeypatch.delenv("CAPSULEKIT_CACHE_DIR")
    assert default_cache_dir() == Path("/b/capsulekit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert default_cache_dir() == Path("/c/.cache/capsulekit")


def test_changed_code_has_another_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package_of_a_test"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = set()
    for name, text in (("__init__.py", ""), ("a.py", "x = 1"), ("a.py", "x = 2"), ("b.sh", ":"), ("c.txt", "no code")):
        (package / name).write_text(text)
        code_identity.cache_clear()
        seen.add(code_identity(package.name))
    code_identity.cache_clear()
    assert len(seen) == 4
    assert code_identity(f"{package.name}.a") != code_identity(package.name)
    sys.modules.pop(package.name, None)


def test_code_that_is_not_there_is_an_error() -> None:
    with pytest.raises(CapsulekitError, match="not installed completely"):
        code_identity("no_such_package_anywhere")
    assert module.code_identity is code_identity


def test_a_scratch_folder_goes_although_something_still_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = shutil.rmtree, []

    def busy(folder: Path, **how: bool) -> None:
        tries.append(folder)
        real(folder, **how)
        if len(tries) < 3:
            (folder / "late").mkdir(parents=True)

    cache = Cache(tmp_path)
    left = tmp_path / "tmp" / "build-killed"
    left.mkdir()
    monkeypatch.setattr("capsulekit.cache.shutil.rmtree", busy)
    Cache(tmp_path)
    assert not left.exists() and len(tries) == 3
    tries.clear()
    with cache.scratch() as folder:
        pass
    assert not folder.exists() and len(tries) == 3
