"""Recipes of stage 1 and hardware profiles: what they may say, what is refused, what the shipped ones say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capsulekit.apt.distro import AptDistro
from capsulekit.cache import Cache
from capsulekit.distro.base import distro
from capsulekit.errors import CapsulekitError
from capsulekit.stage1recipe import DEFAULT, VIRTUAL, Stage1Recipe, load_stage1, shipped_recipe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("stage1-*.toml"))
GOOD = """extends = ["base.toml"]
[distro]
name = "debian"
release = "12"
arch = "amd64"
[kernel]
package = "linux-image-cloud-amd64"
[stage1]
profile = "mine"
level = 3
"""
BASE = """[packages]
include = ["busybox-static", "curl"]
[stage1]
binaries = ["bin/busybox"]
applets = ["sh", "ls"]
modules = ["loop"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.toml").write_text('modules = ["e1000", "!e1000e"]\nfirmware = ["!big/*"]\n')
    (tmp_path / "base.toml").write_text(BASE)
    return tmp_path


def load(folder: Path, text: str) -> Stage1Recipe:
    (folder / "r.toml").write_text(text)
    return load_stage1(folder / "r.toml")


def test_a_recipe_is_laid_over_what_it_extends_and_its_profile(folder: Path) -> None:
    added = '[packages]\ninclude = ["tar", "!curl", "busybox-static"]\nfirmware = ["firmware-x"]\n'
    recipe = load(folder, GOOD + 'modules = ["!looped*"]\napplets = ["!ls", "cat"]\n' + added)
    assert recipe.packages == ("busybox-static", "tar", "firmware-x")
    assert recipe.config.modules == ("e1000", "!e1000e", "loop", "!looped*")
    assert recipe.config.firmware == ("!big/*",)
    assert recipe.config.applets == ("sh", "cat")
    assert (recipe.config.arch, recipe.config.profile, recipe.level) == ("amd64", "mine", 3)


BROKEN = {
    "[distro\n": "not valid TOML",
    GOOD.replace("[kernel]\n", "[kernels]\n"): r"unknown section \[kernels\]",
    GOOD.replace("level = 3", "level = 3\nlevels = 4"): r"unknown key levels in \[stage1\]",
    GOOD.replace("level = 3", "level = true"): r"\[stage1\] level must be a int",
    GOOD.replace("level = 3", "level = 0"): "level must be a number from 1 to 19",
    GOOD.replace("level = 3", "level = 22"): "level must be a number from 1 to 19",
    GOOD.replace("level = 3", ""): r"\[stage1\] level must be a int",
    GOOD.replace('package = "linux-image-cloud-amd64"', "package = 1"): r"\[kernel\] package must be a str",
    GOOD.replace('[kernel]\npackage = "linux-image-cloud-amd64"\n', ""): r"the section \[kernel\] is missing",
    GOOD.replace('"mine"', '"other"'): "there is no profiles/other.toml, neither beside it nor among the shipped ones",
    GOOD.replace('"mine"', '"../mine"'): "'../mine' is no name of a profile",
    GOOD.replace('["base.toml"]', '"base.toml"'): "extends must be a list of texts",
    GOOD.replace('["base.toml"]', "[1]"): "extends must be a list of texts",
    GOOD.replace('["base.toml"]', '["none.toml"]'): "there is no none.toml",
    GOOD.replace('["base.toml"]', '["r.toml"]'): "does one extend itself",
    GOOD.replace('arch = "amd64"', 'arch = "amd64"\ncomponents = ["main,x"]'): "'main,x' is no name of a component",
    GOOD.replace('arch = "amd64"', 'arch = "amd64"\ncomponents = "main"'): "components must be a list of texts",
    GOOD.replace("level = 3", 'level = 3\nmodules = [""]'): "modules must be a list of texts",
    "stage1 = 3\n" + GOOD.replace("[stage1]", "[kernel.x]"): "stage1 must be a section",
}


@pytest.mark.parametrize(("text", "said"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_recipe_is_refused_with_the_place(folder: Path, text: str, said: str) -> None:
    with pytest.raises(CapsulekitError, match=said):
        load(folder, text)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ('module = ["x"]\n', "mine.toml: unknown key module"),
        ('firmware = ["x"]\n', "mine.toml: modules must be a list of texts"),
        ("modules = 1\n", "mine.toml: modules must be a list of texts"),
        ("\xff", "mine.toml: the hardware profile cannot be read: it is not UTF-8 text"),
    ],
)
def test_a_broken_profile_is_refused_with_its_file(folder: Path, profile: str, said: str) -> None:
    (folder / "profiles/mine.toml").write_bytes(profile.encode("latin-1"))
    with pytest.raises(CapsulekitError, match=said):
        load(folder, GOOD)


def test_a_recipe_that_is_not_there_or_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="the stage-1 recipe cannot be read: No such file"):
        load_stage1(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(CapsulekitError, match="the stage-1 recipe cannot be read: Is a directory"):
        load_stage1(tmp_path / "folder.toml")


def test_a_recipe_of_ones_own_may_use_the_shipped_parts(tmp_path: Path) -> None:
    own = GOOD.replace("base.toml", "stage1/common.toml").replace('"mine"', '"generic"')
    recipe = load(tmp_path, own)
    assert "sbin/kexec" in recipe.config.binaries
    assert "kernel/drivers/net/ethernet/*" in recipe.config.modules


# --- the shipped ones


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_read(path: Path) -> None:
    recipe = load_stage1(path)
    assert "sbin/modprobe" in recipe.config.binaries
    assert recipe.config.arch == ("i386" if path.stem.endswith("i386") else "amd64")
    assert len(path.read_text().splitlines()) < 60


def test_by_default_servers_are_meant_and_the_lab_takes_virtual_machines() -> None:
    assert {shipped_recipe(), shipped_recipe(VIRTUAL)} <= set(SHIPPED)
    assert load_stage1(shipped_recipe()).config.profile == "generic"
    assert load_stage1(shipped_recipe(VIRTUAL)).config.profile == "virtual"
    with pytest.raises(CapsulekitError, match=r"the shipped recipe none\.toml is missing"):
        shipped_recipe("none.toml")
    assert DEFAULT == "stage1-debian-12.toml"


def test_every_profile_is_used_by_a_shipped_recipe() -> None:
    assert {path.stem for path in (ROOT / "recipes/profiles").glob("*.toml")} == {
        load_stage1(path).config.profile for path in SHIPPED
    }


def test_no_radio_sound_or_graphics_for_servers() -> None:
    modules = load_stage1(shipped_recipe()).config.modules
    assert not [name for name in modules if any(word in name for word in ("wireless", "sound", "gpu", "drm"))]


# --- components of the archive


def test_other_components_are_other_index_files_and_are_asked_of_mmdebstrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPSULEKIT_REPOS_DIR", raising=False)
    cache = Cache(tmp_path / "cache")
    plain = distro("debian", "12", "amd64", cache)
    same = distro("debian", "12", "amd64", cache, ("main",))
    more = distro("debian", "12", "amd64", cache, ("main", "non-free-firmware"))
    assert isinstance(plain, AptDistro)
    assert isinstance(same, AptDistro)
    assert isinstance(more, AptDistro)
    assert plain._folder == same._folder != more._folder
    assert {line.split()[-1] for line in plain._default_sources().splitlines()} == {"main"}
    assert all(line.endswith(" main non-free-firmware") for line in more._default_sources().splitlines())


def test_a_distribution_without_components_says_so(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="has no components"):
        distro("rocky", "9", "amd64", Cache(tmp_path / "cache"), ("main",))


def test_the_authors_own_archives_say_themselves_which_components_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repos/debian-12").mkdir(parents=True)
    monkeypatch.setenv("CAPSULEKIT_REPOS_DIR", os.fspath(tmp_path / "repos"))
    made = distro("debian", "12", "amd64", Cache(tmp_path / "cache"), ("main", "contrib"))
    assert isinstance(made, AptDistro)
    assert made._components == ()
