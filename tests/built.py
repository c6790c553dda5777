"""Capsules and stage 1 that several tests share: built once per session, through the cache of the machine."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from capsulekit.apt.mmdebstrap import default_sources
from capsulekit.build import BuildOptions, build
from capsulekit.cache import default_cache_dir
from capsulekit.distro.debian import KEYRING
from capsulekit.progress import Progress
from capsulekit.stage1 import build_stage1
from capsulekit.stage1recipe import VIRTUAL, shipped_recipe
from capsulekit.trust.minisign import create_key_files

ROOT = Path(__file__).parent.parent
BUSYBOX = ROOT / "tests/data/busybox/recipe.toml"
BUSYBOX_386 = ROOT / "tests/data/busybox-i386/recipe.toml"
E2E = ROOT / "tests/data/e2e/recipe.toml"
COMPUTE = ROOT / "recipes/debian-12-compute.toml"


@functools.cache
def folder() -> Path:
    """A folder of this test session; the system clears /tmp."""
    return Path(tempfile.mkdtemp(prefix="capsulekit-tests-"))


@functools.cache
def author_key() -> Path:
    """A signing key without a password (a password costs 1 GiB of memory by design)."""
    key = folder() / "author"
    create_key_files(key, None)
    return key


@functools.cache
def capsule(recipe: Path) -> Path:
    """The capsule of a recipe, signed by ``author_key``."""
    out = folder() / f"{recipe.parent.name}-{recipe.stem}.vnfs"
    build(BuildOptions(recipe, out, author_key(), None, False, default_cache_dir()), lambda: b"", Progress())
    return out


@functools.cache
def stage1() -> Path:
    """The folder with the shipped stage 1 for virtual machines."""
    build_stage1(shipped_recipe(VIRTUAL), folder() / "stage1", default_cache_dir(), Progress())
    return folder() / "stage1"


@functools.cache
def generic() -> Path:
    """The folder with the shipped stage 1 for machines of all kinds; cold it takes most of a minute."""
    build_stage1(shipped_recipe(), folder() / "generic", default_cache_dir(), Progress())
    return folder() / "generic"


@dataclass(frozen=True)
class Rpm:
    """A capsule of RPM packages, the cache it was built with, and the folder of its repositories."""

    capsule: Path
    cache: Path
    repos: Path


@functools.cache
def rpm() -> Rpm:
    """The capsule of the RPM distribution that is made on the spot (rpm_distro)."""
    from rpm_distro import describe_repos, distribution, signer

    where = folder() / "rpm"
    where.mkdir()
    recipe, out = ROOT / "tests/data/rpm/recipe.toml", where / "rpm.vnfs"
    with signer("rocky") as key:
        distribution(where / "repo", key)
        repos = describe_repos(where / "repos", {"baseos": f"file://{where}/repo"}, key.public)
        with patch.dict(os.environ, {"CAPSULEKIT_REPOS_DIR": str(repos)}):
            build(BuildOptions(recipe, out, author_key(), None, False, where / "cache"), lambda: b"", Progress())
    return Rpm(out, where / "cache", repos)


@contextlib.contextmanager
def release_and_updates() -> Iterator[None]:
    """Packages for i386 come from the release and its updates alone.

    Its security archive is left out: the index of this architecture there is now and then another than the signed one,
    on mirrors, and then apt rightly refuses it.
    """
    where = folder() / "i386"
    repos = where / "repos/debian-12"
    if not repos.exists():
        repos.mkdir(parents=True)
        (where / "scratch").mkdir()
        lines = default_sources("bookworm", "i386", where / "scratch").splitlines(keepends=True)
        (repos / "sources.list").write_text("".join(line for line in lines if "-security" not in line))
        shutil.copy(KEYRING, repos / "keys.gpg")
    with patch.dict(os.environ, {"CAPSULEKIT_REPOS_DIR": str(repos.parent)}):
        yield


@functools.cache
def i386() -> Path:
    """The shipped Debian 12 capsule for i386."""
    with release_and_updates():
        return capsule(ROOT / "recipes/debian-12-minimal-i386.toml")


@functools.cache
def busybox_i386() -> Path:
    """The small capsule for i386."""
    with release_and_updates():
        return capsule(BUSYBOX_386)


@functools.cache
def stage1_i386() -> Path:
    """The folder with the shipped stage 1 for 32-bit machines."""
    with release_and_updates():
        build_stage1(
            ROOT / "recipes/stage1-debian-12-i386.toml", folder() / "stage1-i386", default_cache_dir(), Progress()
        )
    return folder() / "stage1-i386"
