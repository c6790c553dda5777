"""A command on capsules that is killed at any write leaves the old state or the new one, and can be run again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from asking_capsule import NAME, answers_file, asking_capsule, kit, store_of, stored, trusting_site
from dying import KILLED
from edited_capsule import edited
from small_capsule import small_capsule

from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths

# `make soak` kills two hundred times at random moments.
KILLS = int(os.environ.get("CAPSULEKIT_SOAK", "20"))


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
    "export older": Case(("export", NAME, "{out}", "--over", "--generation", "3"), ({NAME, "other"},)),
    "rollback": Case(("rollback", NAME), ({NAME, "other"},)),
    "delete older": Case(("delete", NAME, "--keep", "0", "-y"), ({NAME, "other"},)),
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A site with two capsules, one of them with four generations; ``whole`` is its state folder as it was then."""

    paths: SitePaths
    whole: Path
    places: dict[str, Path]

    def words(self, case: Case) -> list[str]:
        return [word.format(**self.places) for word in case.words]

    def anew(self) -> None:
        shutil.rmtree(self.paths.state)
        shutil.copytree(self.whole, self.paths.state)

    def argv(self, words: list[str]) -> list[str]:
        return ["--config-dir", str(self.paths.config), "--state-dir", str(self.paths.state), "vnfs", *words]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    paths = trusting_site(tmp_path)
    asking_capsule(tmp_path / "q.vnfs")
    small_capsule(tmp_path / "o.vnfs", version="2.0")
    asking_capsule(tmp_path / "n.vnfs", version="3.0")
    first = answers_file(tmp_path)
    assert kit(paths, "vnfs", "import", tmp_path / "q.vnfs", "-y", "--answers", first).status == 0
    assert kit(paths, "vnfs", "import", tmp_path / "o.vnfs", "--as", "other").status == 0
    for number in range(2):
        edited(paths, NAME, {"opt": b"%d" % number})
    answers_file(tmp_path, 'root = "anders"\nntp = "10.0.0.77"\n')
    whole = tmp_path / "whole"
    shutil.copytree(paths.state, whole)
    places = {"answers": first, "new": tmp_path / "n.vnfs", "out": tmp_path / "out.vnfs"}
    return Site(paths, whole, places)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_write(site: Site, name: str) -> None:
    case, killed = CASES[name], 0
    words = site.words(case)
    while True:
        site.anew()
        argv = [sys.executable, "-c", KILLED, str(killed), *site.argv(words)]
        status = subprocess.run(argv, capture_output=True, check=False, timeout=120)
        if status.returncode == 0:
            break
        assert status.returncode == -signal.SIGKILL, status.stderr
        check(site.paths, case, words)
        killed += 1
    assert killed, "it wrote nothing"


@pytest.mark.long
def test_killed_at_random_moments(site: Site) -> None:
    chance, landed = random.Random(KILLS), 0
    lengths: dict[str, tuple[float, float]] = {}
    for turn in range(KILLS):
        name = list(CASES)[turn % len(CASES)]
        words = site.words(CASES[name])
        argv = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()", *site.argv(words)]
        site.anew()
        if name not in lengths:
            lengths[name] = timed([*argv[:3], "--version"]), timed(argv)
            site.anew()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(*sorted(lengths[name])))
        process.kill()
        landed += process.wait(timeout=60) == -signal.SIGKILL
        check(site.paths, CASES[name], words)
    assert landed >= KILLS // 3, "most commands were done before"


def timed(argv: list[str]) -> float:
    """Seconds that a command takes."""
    start = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    return time.monotonic() - start


def left_over(paths: SitePaths) -> list[str]:
    """Files of the store that no generation of a capsule has."""
    store = store_of(paths)
    wanted = set[Path]()
    for row in store.list():
        for identity in store.generations(row.name):
            wanted |= set(store.generation(row.name, identity).iterdir())
            wanted |= {store.blob(sha256) for sha256 in store.digests(row.name, identity).values()}
    store.registry.close()  # type: ignore[attr-defined]
    return [name for name in stored(paths) if paths.state / name not in wanted]


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
    # Whatever the killed one left is taken away by the next one that changes anything.
    if gone or taken or words[0] == "export":
        assert kit(paths, "vnfs", "clone", "other", "another").status == 0
    assert left_over(paths) == []
    assert kit(paths, "vnfs", "delete", *kit(paths, "vnfs", "list").out.split(), "-y").status == 0
    assert stored(paths) == []
