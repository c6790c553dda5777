"""Killed at random moments, and beside each other: the next build succeeds with the same bytes, and nothing is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from building import adopting, build_words, cold_cache, lock_of, mounts, nothing_left, ok, running, wait_for

from capsulekit.cache import Cache, _intact, default_cache_dir
from capsulekit.files import sha256_file
from capsulekit.lock.model import Lock, load

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to see what every process has mounted"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
]
# `make soak` kills 200 times.
KILLS = int(os.environ.get("CAPSULEKIT_SOAK", "20"))
# Packages up to this size (bytes) are fetched anew now and then: killed while they arrive, too.
SMALL = 1_000_000
# The soak takes others each time; what is printed when a test fails says which they were.
SEED = int(os.environ.get("CAPSULEKIT_SEED") or (random.SystemRandom().randrange(10**6) if KILLS > 20 else 2006))


@pytest.fixture(scope="module")
def small() -> Path:
    return built.capsule(built.BUSYBOX)


def packages_of(lock: Lock, where: Path) -> Path:
    """A cache with these packages and nothing else."""
    cache = Cache(where)
    for package in (p for part in lock.sets.values() for p in part):
        cache.add_package(Cache(default_cache_dir()).package(package.sha256), package.sha256)
    return where


@dataclass(frozen=True)
class Times:
    """Seconds that a build from nothing took, and what of them each step."""

    whole: float
    steps: dict[str, float]

    def expected(self, left: set[str]) -> float:
        """About how long it takes when some results are there: the root on one core, the rest on the other."""
        lacking = {name: 0.0 if name in left else seconds for name, seconds in self.steps.items()}
        longest = max(self.steps["rootfs"], self.steps["modules"] + self.steps["initrd"])
        # What was measured of the steps, beside each other, may be more than the whole was.
        return max(1.0, self.whole - longest + max(lacking["rootfs"], lacking["modules"] + lacking["initrd"]))


def measured(words: list[str]) -> Times:
    start = time.monotonic()
    steps = {step["name"]: step["seconds"] for step in json.loads(ok(*words, "--json"))["steps"]}
    names = {"rootfs": "root file system", "modules": "kernel and modules", "initrd": "stage 2"}
    return Times(time.monotonic() - start, {name: steps[shown] for name, shown in names.items()})


def some_forgotten(cache: Path, chance: random.Random) -> set[str]:
    """Drop some results and packages, so that builds go on to be of all lengths; the steps that are left."""
    steps = sorted(p for p in (cache / "steps").iterdir() if p.is_dir())
    for step in steps:
        if chance.random() < 0.5:
            shutil.rmtree(step)
    for package in sorted(cache.glob("packages/*/*.pkg")):
        if package.stat().st_size < SMALL and chance.random() < 0.05:
            package.unlink()
    return {step.name.partition("-")[0] for step in steps if step.exists()}


def started(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def killed(words: list[str], moment: float, cache: Path) -> bool:
    """Run a build and kill its program, and only that, after some seconds; whether it was still at work then."""
    with adopting() as orphans:
        with started(words) as child:
            try:
                said = child.communicate(timeout=moment)[1]
                assert child.returncode == 0, said.decode()
                return False
            except subprocess.TimeoutExpired:
                child.kill()
        assert wait_for(lambda: not orphans(), 20), orphans()
    assert mounts(cache) == []
    return True


@pytest.mark.timeout(300 + 30 * KILLS)
def test_builds_killed_at_random_moments_leave_a_cache_that_the_next_one_uses(small: Path, tmp_path: Path) -> None:
    print(f"CAPSULEKIT_SEED={SEED}")
    chance = random.Random(SEED)
    lock = lock_of(small, tmp_path)
    cache, desk = packages_of(load(lock), tmp_path / "cache"), tmp_path / "desk"
    desk.mkdir()
    out = desk / "x.vnfs"
    words = build_words(built.BUSYBOX, out, cache, "--lock", lock)
    times = measured(words)
    hit = tries = 0
    while hit < KILLS:
        assert (tries := tries + 1) <= 3 * KILLS, f"of {tries} builds only {hit} lived until their moment"
        out.unlink(missing_ok=True)
        left = some_forgotten(cache, chance)
        moment = times.expected(left) * chance.random()
        print(f"{hit + 1}: with {sorted(left)} at {moment:.3f} of {times.whole:.3f} s")
        hit += killed(words, moment, cache)
        assert not out.exists() or out.read_bytes() == small.read_bytes(), "a capsule is whole or not there"
    ok(*words)
    assert out.read_bytes() == small.read_bytes()
    out.unlink()
    assert list(desk.iterdir()) == []  # nor what a build had begun to write
    nothing_left(desk, cache)
    whole_cache(cache, load(lock))


def whole_cache(cache: Path, lock: Lock) -> None:
    """Every package is what its name says, every result is what was noted of it, and no other file is there."""
    digests = {p.sha256 for part in lock.sets.values() for p in part}
    packages = {p.name: p for p in (cache / "packages").rglob("*") if p.is_file()}
    kept = {name for name in packages if name.endswith(".control")}
    assert {f"{digest}.pkg" for digest in digests} == packages.keys() - kept
    assert all(name == f"{sha256_file(packages[name])}.pkg" for name in packages.keys() - kept)
    for name in kept:  # what a package says of itself
        path = packages[name]
        assert path.read_text() == ok("dpkg-deb", "-f", path.with_suffix(".pkg"))
    steps = [p for p in (cache / "steps").iterdir() if p.suffix != ".lock"]
    # One that was forgotten before a killed build, as "install", is not made again while what is made of it is there.
    made, needed = {p.name.partition("-")[0] for p in steps}, {"rootfs", "modules", "initrd", "papers"}
    assert needed <= made <= needed | {"install"}
    assert all(map(_intact, steps))
    assert [p.name for p in (cache / "tmp").iterdir()] == [".lock"]


def test_whatever_a_killed_build_had_started_ends_with_it(tmp_path: Path) -> None:
    """Also what would have gone on for ever, in a root that was mounted for it."""
    recipe, out = tmp_path / "r.toml", tmp_path / "x.vnfs"
    files = '[files."/bin/sh"]\nsource = "busybox"\nmode = "0755"\n[scripts]\nrootfs = ["wait.sh"]\n'
    recipe.write_text(built.BUSYBOX.read_text() + files)
    shutil.copy(shutil.which("busybox") or "", tmp_path / "busybox")
    (tmp_path / "wait.sh").write_text("#!/bin/sh\n/bin/busybox sleep 86399 &\n/bin/busybox sleep 86400\n")
    cache = cold_cache(tmp_path / "cache", "modules", "initrd", indexes=True)
    with adopting() as orphans, started(build_words(recipe, out, cache, "-q")) as child:
        asleep = [f"/bin/busybox sleep {seconds} " for seconds in (86399, 86400)]
        assert wait_for(lambda: set(asleep) <= set(orphans()), 120), child.communicate(timeout=1)
        child.kill()
        child.wait()
        assert wait_for(lambda: not orphans(), 20), orphans()
    assert mounts(cache) == [] and not out.exists()


def test_two_builds_of_different_recipes_at_once_share_a_cache_and_are_both_right(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(built.BUSYBOX.read_text().replace("test-busybox", "other").replace("busybox capsule", "other"))
    alone = built.capsule(other)
    cache = cold_cache(tmp_path / "cache")
    wanted = {built.BUSYBOX: small, other: alone}
    lock = lock_of(small, tmp_path)  # the packages are the same
    children = {
        recipe: started(build_words(recipe, tmp_path / f"{number}.vnfs", cache, "--lock", lock, "--offline", "-q"))
        for number, recipe in enumerate(wanted)
    }
    for number, (recipe, child) in enumerate(children.items()):
        said = child.communicate(timeout=300)[1]
        assert child.returncode == 0, said.decode()
        assert (tmp_path / f"{number}.vnfs").read_bytes() == wanted[recipe].read_bytes()
        (tmp_path / f"{number}.vnfs").unlink()
    nothing_left(tmp_path, cache)
    made = [p.name.partition("-")[0] for p in (cache / "steps").iterdir() if p.suffix != ".lock"]
    # What both need is there once.
    assert sorted(made) == ["initrd", "install", "modules", "papers", "papers", "rootfs", "rootfs"], (
        "shared where they can"
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_killed_in_the_middle_leaves_nothing_that_hinders_the_next(
    small: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out, cold = tmp_path / "x.vnfs", cold_cache(tmp_path / "cold")
    # A shell that put the tests into the background may have had INT ignored, which children inherit.
    words = ["env", "--default-signal=INT"]
    words += build_words(built.BUSYBOX, out, cold, "--lock", lock_of(small, tmp_path), "--offline")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as child:
        # Where it works is seen by nobody else, so its log tells that it has begun.
        assert wait_for(lambda: list((cold / "tmp").glob("*/install.log")), 60), "mmdebstrap never started"
        time.sleep(0.3)
        child.send_signal(how)
        _, said = child.communicate(timeout=60)
        assert child.returncode == {signal.SIGINT: 1}.get(how, -how)
        assert b"Traceback" not in said
    assert wait_for(lambda: not running(cold), 20), running(cold)
    assert mounts(tmp_path) == [] and not out.exists()
    ok(*words)
    assert out.read_bytes() == small.read_bytes()
    out.unlink()
    nothing_left(tmp_path, cold)
