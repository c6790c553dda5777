"""The shipped stage 1 with one thing at a time taken out: `stage1 check` finds it each time and says what it is.

All libraries, commands, scripts, tables and mount targets; modules and firmware by sample, another one in each run.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import built
import pytest
from capsulekit_cli import cli
from initramfs_builder.check.closure import ClosureError, check_facts
from initramfs_builder.check.problem import Problem
from initramfs_builder.cpio import Entry, write_cpio
from initramfs_builder.image import Fact, Image, read_facts
from initramfs_builder.resources import shell_dir
from initramfs_builder.unpack import read_image

from capsulekit.build import BuildOptions, build
from capsulekit.cache import default_cache_dir
from capsulekit.progress import Progress
from capsulekit.stage1 import build_stage1
from capsulekit.stage1recipe import VIRTUAL, shipped_recipe

pytestmark = pytest.mark.long

SEED = time.time_ns() % 1_000_000
MODULES, FIRMWARE = 50, 30
# Taken along because a program may ask for them by its configuration, which nothing here does: converters of character
# sets, OpenSSL's old algorithms, and what the C library has in itself since 2.34.
UNASKED = re.compile(r".*/(?:gconv|ossl-modules)/.*|.*/libnss_(?:dns|files)\.so\.2")


@pytest.fixture(scope="module")
def folder() -> Path:
    return built.generic()


@pytest.fixture(scope="module")
def image(folder: Path) -> Image:
    return read_facts(folder / "stage1.img")


def left_by(image: Image, *paths: str) -> tuple[Problem, ...]:
    assert all(path in image.facts for path in paths)
    return check_facts(image.without(paths))


def files(image: Image, pattern: str) -> list[tuple[str, Fact]]:
    return [(path, fact) for path, fact in image.facts.items() if re.fullmatch(pattern, path)]


def links_to(image: Image, path: str) -> Iterator[str]:
    return (link for link, fact in image.facts.items() if fact.target is not None and image.resolve(link) == path)


def test_the_image_as_it_is_lacks_nothing(folder: Path, image: Image) -> None:
    assert check_facts(image) == ()
    assert cli("stage1", "check", folder).status == 0


def test_each_library_is_missed(image: Image) -> None:
    libraries = [p for p, fact in image.facts.items() if fact.elf and ".so" in p and not UNASKED.fullmatch(p)]
    assert len(libraries) > 30
    for path in libraries:
        names = {name.rpartition("/")[2] for name in (path, *links_to(image, path))}
        found = left_by(image, path, *links_to(image, path))
        assert any(problem.chain[-1].rpartition("/")[2] in names for problem in found), path


def test_each_link_to_a_library_is_missed(image: Image) -> None:
    links = [path for path, fact in files(image, r".*\.so[^/]*") if fact.target is not None]
    assert len(links) > 20
    for path in links:
        assert any(one.chain[-1].endswith(path.rpartition("/")[2]) for one in left_by(image, path)), path


def test_each_command_is_missed(image: Image) -> None:
    commands = [path for path, _ in files(image, r"usr/s?bin/[^/]+")]
    assert len(commands) > 60
    for path in commands:
        name = path.rpartition("/")[2]
        found = [one for one in left_by(image, path) if one.chain[-1].rpartition("/")[2].startswith(name)]
        assert found and all(len(one.chain) > 1 for one in found), path


def test_each_of_our_files_is_missed(image: Image) -> None:
    ours = ["init", *(path for path, fact in files(image, r"usr/lib/capsulekit/.*") if fact.is_file)]
    assert len(ours) > 15
    for path in ours:
        assert any(one.chain[-1].endswith(path.rpartition("/")[2]) for one in left_by(image, path)), path


def test_modules_are_missed(image: Image) -> None:
    modules = [path for path, fact in image.facts.items() if fact.module is not None]
    assert len(modules) > 200
    for path in random.Random(SEED).sample(modules, MODULES):
        missed = [one for one in left_by(image, path) if one.kind == "module"]
        assert any(path.endswith("/" + one.chain[-1]) for one in missed), (path, SEED)


def test_firmware_is_missed(image: Image) -> None:
    firmware = [path for path, fact in files(image, r"usr/lib/firmware/.*") if fact.is_file]
    assert len(firmware) > FIRMWARE
    for path in random.Random(SEED).sample(firmware, FIRMWARE):
        gone = (path, *links_to(image, path))
        assert any(one.kind in ("firmware", "link") for one in left_by(image, *gone)), (path, SEED)


def test_each_index_of_the_modules_is_missed(image: Image) -> None:
    names = [path for path, _ in files(image, r".*/modules\.[a-z.]+")]
    needed = [path for path in names if not path.endswith(("modules.weakdep", "modules.softdep"))]
    assert {path.rpartition("/")[2] for path in needed} >= {"modules.dep", "modules.dep.bin", "modules.builtin.modinfo"}
    for path in needed:
        assert any(one.kind == "module" for one in left_by(image, path)), path


@pytest.mark.parametrize("path", ["dev", "proc", "run", "sys", "tmp", "dev/console", "dev/null", "bin", "sbin", "lib"])
def test_each_mount_target_device_and_link_of_the_skeleton_is_missed(image: Image, path: str) -> None:
    assert left_by(image, path)


@pytest.mark.parametrize("path", ["etc/passwd", "etc/group", "etc/hosts", "etc/nsswitch.conf"])
def test_each_file_of_the_configuration_is_missed(image: Image, path: str) -> None:
    assert {one.chain[-1] for one in left_by(image, path) if one.kind == "config"} == {path}


def test_an_image_without_one_of_each_kind_is_refused_as_a_file_too(folder: Path, image: Image, tmp_path: Path) -> None:
    chosen = random.Random(SEED)
    kinds = (r".*/libcurl\.so\.4", r".*\.ko\.zst", r"usr/lib/firmware/.*\.bin", r"usr/bin/sed", "proc", "etc/hosts")
    gone = {chosen.choice(files(image, kind))[0] for kind in kinds}
    with (tmp_path / "stage1.img").open("wb") as out:
        write_cpio(out, (entry for entry in _entries(folder / "stage1.img") if entry.path not in gone), 0)
    done = cli("stage1", "check", tmp_path / "stage1.img")
    assert done.status == 1
    for path in gone:
        name = path.rpartition("/")[2]
        assert any(line.startswith("  ") and name in line for line in done.err.splitlines()), (path, SEED, done.err)


def test_a_stage_1_that_lacks_something_never_replaces_a_good_one(tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shutil.copytree(shell_dir("stage1"), shell)
    out = tmp_path / "stage1"
    shutil.copytree(built.stage1(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with (shell / "lib/say.sh").open("a") as file:
        file.write("\nnever_called() { frobnicate; }\n")
    recipe = shipped_recipe(VIRTUAL)
    with (
        patch("initramfs_builder.stage1.shell_dir", return_value=shell),
        patch("capsulekit.stage1.shell_dir", return_value=shell),
        pytest.raises(ClosureError, match="this stage 1 would not boot: 1 thing is missing") as error,
    ):
        build_stage1(recipe, out, default_cache_dir(), Progress())
    assert error.value.details == ("init needs usr/lib/capsulekit/say.sh, which needs frobnicate: not in the image",)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_capsule_whose_stage_2_lacks_something_is_not_built(tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shutil.copytree(shell_dir("stage2"), shell)
    with (shell / "lib/stack.sh").open("a") as file:
        file.write("\nnever_called() { frobnicate; }\n")
    out = tmp_path / "small.vnfs"
    options = BuildOptions(built.BUSYBOX, out, built.author_key(), None, False, default_cache_dir())
    with (
        patch("initramfs_builder.stage2.shell_dir", return_value=shell),
        patch("capsulekit.initrd.shell_dir", return_value=shell),
        pytest.raises(ClosureError, match="this capsule's initrd would not boot: 1 thing is missing") as error,
    ):
        build(options, lambda: b"", Progress())
    assert error.value.details == ("init needs usr/lib/capsulekit/stack.sh, which needs frobnicate: not in the image",)
    assert not out.exists()


def _entries(path: Path) -> Iterator[Entry]:
    """An image's entries, each folder once."""
    known: set[str] = set()
    for member in read_image(path):
        if member.path not in known:
            known.add(member.path)
            data = member.read() if member.target is None else None
            regular = member.mode >> 12 == 0o10
            yield Entry(
                member.path, member.mode, data if regular else None, rdev=member.rdev, target=member.target, mtime=0
            )
