"""One full pairwise perturbation for each family: root here, an ordinary user there, a container's root elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import built
import pytest

from capsulekit.cache import Cache, default_cache_dir
from capsulekit.progress import Progress
from capsulekit.prove import Verdict, prove
from capsulekit.rebuild import source_of
from capsulekit.trust.minisign import load_public

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user and to mount a file system"),
    pytest.mark.skipif(not all(map(shutil.which, ("mmdebstrap", "dnf", "createrepo_c"))), reason="needs the builders"),
    pytest.mark.skipif(not list(Path("/usr/lib").glob("*/datefudge/datefudge.so")), reason="needs datefudge"),
]
EVERYTHING = {"clock", "clock inside the root", "hostname", "time zone", "locale", "umask", "user", "path", "cores",
              "readdir"}  # fmt: skip
RECIPES = built.ROOT / "recipes"


def shipped(name: str) -> Callable[[], tuple[Path, Path]]:
    return lambda: (built.capsule(RECIPES / f"{name}.toml"), default_cache_dir())


def i386() -> tuple[Path, Path]:
    return built.i386(), default_cache_dir()


def rpm() -> tuple[Path, Path]:
    return built.rpm().capsule, built.rpm().cache


# What cannot be applied is said, and only this may be: the library that moves the clock is the host's, not i386's; the
# RPM distribution's programs are busybox, which no library reaches.
CASES: dict[str, tuple[Callable[[], tuple[Path, Path]], set[str]]] = {
    "debian-12": (shipped("debian-12-compute"), set()),
    "debian-13": (shipped("debian-13-minimal"), set()),
    "debian-12-i386": (i386, {"clock inside the root"}),
    "rpm": (rpm, {"clock inside the root"}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_family_gives_the_same_bytes_under_every_perturbation(name: str) -> None:
    make, cannot = CASES[name]
    capsule, cache = make()
    keys = [load_public(built.author_key().with_suffix(".pub"))]
    verdict: Verdict = prove(source_of(capsule, keys), Cache(cache), Progress())
    assert verdict.same, verdict.dumps().decode()
    assert {one.name for one in verdict.proofs} == {"A", "B"}
    for proof in verdict.proofs:
        applied = {one.what for one in proof.perturbations if one.value}
        assert EVERYTHING - cannot <= applied, {one.what: one.reason for one in proof.perturbations if one.reason}
    users = {one.value for proof in verdict.proofs for one in proof.perturbations if one.what == "user"}
    assert users == {"uid 4242", "root of a user namespace"}
