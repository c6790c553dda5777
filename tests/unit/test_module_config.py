"""A module's settings: made once, never overwritten, the nearest one's word; and what runs on which node."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import Module, Setting, TextConfig
from provisioner.catalog.chosen import Context, brought, nearest_roles
from provisioner.catalog.config import check_config, joined, make_config, module_config, parts, settings
from provisioner.catalog.found import Catalog, load_module
from provisioner.registry.model import Node
from provisioner.siteconf import SiteConfig

NODE = Node("52:54:00:12:34:56", "n0001", "rack", groupname="g-1", vnfs="deb_12.amd64")
KEYS = (Setting("zone", "UTC", "The zone"), Setting("count", 3, "How many"), Setting("on", False, "Whether"))
SETTING = Module("mine", "1", "s", ("init/all",), ("init",), (), settings=KEYS)


def text_module(join: str = "lines") -> Module:
    return Module("mine", "1", "s", (), ("init",), (), text=TextConfig("passwd", join, "# nothing yet\n"))


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "config", tmp_path / "state")


def put(paths: SitePaths, name: str, text: str | bytes) -> None:
    path = module_config(paths, "mine") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_the_folder_is_made_with_defaults_and_never_overwritten(paths: SitePaths) -> None:
    made = make_config(paths, SETTING)
    folder = module_config(paths, "mine")
    assert {p.name for p in folder.iterdir()} == {"settings.toml", "vnfs", "group", "node"}
    text = (folder / "settings.toml").read_text()
    assert '# The zone\n# zone = "UTC"\n' in text and "# on = false\n" in text
    assert (folder / "settings.toml").stat().st_mode & 0o777 == 0o600
    assert settings(paths, SETTING, NODE) == {"zone": "UTC", "count": 3, "on": False}
    put(paths, "settings.toml", "count = 9\n")
    assert made and make_config(paths, SETTING) == []
    assert (folder / "settings.toml").read_text() == "count = 9\n"


def test_a_folder_that_cannot_be_made_leaves_nothing(paths: SitePaths) -> None:
    put(paths, "group", "a file in the way")
    with pytest.raises(CapsulekitError, match="can't make the settings"):
        make_config(paths, SETTING)
    assert {p.name for p in module_config(paths, "mine").iterdir()} == {"group"}


def test_for_each_key_the_nearest_file_has_the_word(paths: SitePaths) -> None:
    put(paths, "vnfs/deb_12.amd64", 'zone = "vnfs"\ncount = 1\non = true\n')
    put(paths, "settings.toml", 'zone = "all"\ncount = 2\n')
    put(paths, "group/g-1", 'zone = "group"\n')
    put(paths, "group/other", 'zone = "nobody"\n')
    assert settings(paths, SETTING, NODE) == {"zone": "group", "count": 2, "on": True}
    put(paths, "node/n0001", 'zone = "node"\n')
    assert settings(paths, SETTING, NODE)["zone"] == "node"
    put(paths, "node/n0001.rack", 'zone = "cluster"\n')
    assert settings(paths, SETTING, NODE)["zone"] == "cluster"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zone = 1\n", "zone must be a str"),
        ("count = true\n", "count must be a int"),
        ("on = 1\n", "on must be a bool"),
        ("colour = 'red'\n", "unknown key 'colour'"),
        ('zone = "a\\nb"\n', "one line"),
        ("zone =\n", "settings.toml"),
        (b"\xff", "settings.toml"),
        ("zone = " + "[" * 100000, "settings.toml"),
        ("count = " + "9" * 5000, "settings.toml"),
    ],
)
def test_a_wrong_setting_is_named(paths: SitePaths, text: str | bytes, said: str) -> None:
    put(paths, "settings.toml", text)
    with pytest.raises(CapsulekitError, match=said):
        settings(paths, SETTING, NODE)
    with pytest.raises(CapsulekitError, match=said):
        check_config(paths, SETTING)


def test_a_wrong_secret_is_not_repeated(paths: SitePaths) -> None:
    """The message goes to the node's history and to the log."""
    module = Module("mine", "1", "s", (), ("init",), (), settings=(Setting("key", "", "A key", secret=True),))
    put(paths, "settings.toml", "key = 31337\n")
    with pytest.raises(CapsulekitError, match="key must be a str") as caught:
        settings(paths, module, NODE)
    assert "31337" not in caught.value.message


def test_text_is_joined_in_the_manuals_order_and_keeps_its_bytes(paths: SitePaths) -> None:
    module = text_module()
    put(paths, "all", b"# a comment\n\n$all `x` \xff\n")
    put(paths, "vnfs/deb_12.amd64", "vnfs\n")
    put(paths, "group/g-1", "group without an end")
    put(paths, "node/n0001", "node\r\n")
    found = parts(paths, module, NODE)
    assert [part.scope for part in found] == ["all", "vnfs", "group", "node"]
    assert joined(module, found) == b"$all `x` \xff\nvnfs\ngroup without an end\nnode\r\n"


def test_of_entries_with_one_name_the_nearest_counts_where_the_first_stood(paths: SitePaths) -> None:
    module = text_module("names")
    put(paths, "all", "root:all\nkim:all\nlee:all\n")
    put(paths, "vnfs/deb_12.amd64", "kim:vnfs\nsshd:vnfs\n")
    put(paths, "group/g-1", "lee:group\nlee:again\n")
    put(paths, "node/n0001", "kim:node\n")
    assert joined(module, parts(paths, module, NODE)) == b"root:all\nkim:node\nlee:again\nsshd:vnfs\n"


def test_no_name_leads_out_of_the_folder(paths: SitePaths) -> None:
    (paths.config / "modules").mkdir(parents=True)
    (paths.config / "modules/secret").write_text("secret\n")
    put(paths, "all", "x\n")
    odd = Node("52:54:00:12:34:56", "n0001", groupname="../../secret", vnfs="..")
    assert [part.scope for part in parts(paths, text_module(), odd)] == ["all"]


def test_a_folder_in_a_files_place_is_named(paths: SitePaths) -> None:
    put(paths, "all/x", "y")
    with pytest.raises(CapsulekitError, match=r"can't read .*/mine/all"):
        parts(paths, text_module(), NODE)


# --- who runs what


def test_several_roles_make_one_run_and_the_nearest_is_named() -> None:
    active = {
        "b": ["init/all", "init/group/g-1", "init/node/n0001", "init/vnfs/deb_12.amd64", "ready/all"],
        "a": ["init/vnfs/deb_12.amd64", "init/all"],
        "c": ["init/vnfs/deb_12.amd64"],
        "d": ["init/group/other", "init/node/n0002", "ready/all"],
    }
    assert nearest_roles(active, NODE, "init") == {
        "a": "init/all", "b": "init/node/n0001", "c": "init/vnfs/deb_12.amd64",
    }  # fmt: skip
    assert list(nearest_roles({"e": ["init/node/n0001.rack"]}, NODE, "init")) == ["e"]


def catalog_of(folder: Path, **modules: str) -> Catalog:
    for name, script in modules.items():
        (folder / name / "init").mkdir(parents=True)
        toml = f'name = "{name}"\nversion = "1"\nsummary = "s"\nstates = ["init"]\n'
        (folder / name / "module.toml").write_text(toml)
        (folder / name / "init" / script).write_text("#!/bin/sh\n")
        load_module(folder / name)
    return Catalog(folder)


def test_scripts_of_all_modules_run_in_number_order_each_once(tmp_path: Path, paths: SitePaths) -> None:
    catalog = catalog_of(tmp_path / "m", late="90-x", early="05-x", same="05-a", other="05-x")
    context = Context(paths, SiteConfig(), catalog, list)
    roles = ["init/all", "init/group/g-1"]
    found = brought(context, dict.fromkeys(("late", "early", "same", "other"), roles), NODE, "init", None)
    assert [(s.order, s.name, s.module) for s in found.scripts] == [
        (5, "05-a", "same"), (5, "05-x", "early"), (5, "05-x", "other"), (90, "90-x", "late"),
    ]  # fmt: skip
    assert {one.role for one in found.chosen} == {"init/group/g-1"}


def test_a_module_that_is_activated_but_gone_is_an_error_with_its_name(tmp_path: Path, paths: SitePaths) -> None:
    context = Context(paths, SiteConfig(), Catalog(tmp_path), list)
    with pytest.raises(CapsulekitError, match="module 'gone' is activated in init/all but not installed"):
        brought(context, {"gone": ["init/all"]}, NODE, "init", None)
