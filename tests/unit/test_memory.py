"""Where a root is unpacked: in memory when there is plenty, on the disk otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsulekit import memory
from capsulekit.memory import MOST, SHARE, available, room_for

GIB = 1 << 30


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPSULEKIT_SCRATCH", raising=False)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the machine has to give, in a list to change it."""
    left = [30 * GIB]
    monkeypatch.setattr(memory, "available", lambda: left[0])
    return left


def test_a_root_that_fits_gets_the_most_there_is_for_one_and_no_more(free: list[int]) -> None:
    assert room_for(0) == room_for(GIB) == MOST
    free[0] = SHARE * GIB
    assert room_for(GIB // 2) == GIB, "a third of what is free"


def test_a_root_may_turn_out_half_as_large_again_as_was_guessed(free: list[int]) -> None:
    largest = MOST * 2 // 3
    assert room_for(largest) == MOST and room_for(largest + 2) == 0
    free[0] = 3 * SHARE * 1000
    assert room_for(2000) == 3000 and room_for(2001) == 0


def test_a_large_root_is_never_in_memory_however_much_there_is(free: list[int]) -> None:
    free[0] = 1 << 50
    assert room_for(5 * GIB) == 0


def test_a_machine_without_memory_to_spare_works_on_the_disk(free: list[int]) -> None:
    free[0] = 0
    assert room_for(1) == 0 and room_for(0) == 0


def test_the_author_may_say_disk(free: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSULEKIT_SCRATCH", "disk")
    assert room_for(1) == 0
    monkeypatch.setenv("CAPSULEKIT_SCRATCH", "")
    assert room_for(1) == MOST


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the memory controllers' files, as a container sees them."""
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "limit_in_bytes")))
    return tmp_path


def test_what_can_be_had_is_what_the_kernel_says(limits: Path) -> None:
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kernels = int(told["MemAvailable"].split()[0]) * 1024
    assert abs(available() - kernels) < GIB // 2, "other programs took or gave some meanwhile"


@pytest.mark.parametrize("name", ["memory.max", "limit_in_bytes"])
def test_a_container_gives_no_more_than_it_was_allowed(limits: Path, name: str) -> None:
    (limits / name).write_text("1048576\n")
    assert available() == 1 << 20 and room_for(1) == (1 << 20) // SHARE


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n", ""])
def test_a_container_without_a_limit_gives_what_the_machine_has(limits: Path, text: str) -> None:
    (limits / "memory.max").write_text(text)
    assert available() > 1 << 20
