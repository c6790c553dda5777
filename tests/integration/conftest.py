"""What the tests of several files start from: the small recipe of step_desk.py, built once; a wire to a master."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import built
import pytest
from building import cold_cache
from netns import Wire, wire
from small_site import MAC
from step_desk import CHILD, ODD, PARENT, SYSTEM, Desk, Report


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Report]:
    """The small recipe, built once with its lock kept beside it."""
    top = tmp_path_factory.mktemp("steps")
    built.capsule(built.BUSYBOX)  # its kernel is ours: the machine's cache has it
    desk = Desk(top / "desk", cold_cache(top / "cache", indexes=True))
    desk.folder.mkdir()
    (desk.folder / "parent.toml").write_text(PARENT)
    (desk.folder / "r.toml").write_text(CHILD)
    (desk.folder / "odd.sh").write_text(ODD)
    return desk, desk.build("--write-lock")


@pytest.fixture
def desk(first: tuple[Desk, Report], tmp_path: Path) -> Desk:
    return first[0].copy(tmp_path / "desk")


@pytest.fixture(scope="session")
def system(first: tuple[Desk, Report], tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Report]:
    """A recipe with accounts and units, built once."""
    desk = first[0].copy(tmp_path_factory.mktemp("system") / "desk")
    (desk.folder / "parent.toml").write_text(SYSTEM)
    return desk, desk.build("--write-lock")


@pytest.fixture
def net() -> Iterator[Wire]:
    """A master's namespace with 10.77.0.1/24, and a node's with the first node's card, joined by a wire."""
    with wire("10.77.0.1/24", MAC) as made:
        yield made
