"""`capsulekit new` and the editing of recipes: small, commented, never over another file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError
from capsulekit.recipe import new
from capsulekit.recipe.edit import change
from capsulekit.recipe.load import load_recipe

PARENT = """[capsule]
name = "site"
version = "7"
[distro]
name = "debian"
release = "12"
[kernel]
package = "linux-image-cloud-amd64"
[packages]
include = ["vim-tiny"]
"""


def test_a_new_recipe_is_the_debian_compute_node_unless_more_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    assert main(["new", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: the recipe of mine; build it with: capsulekit build {path}")
    made = load_recipe(path)
    assert (made.full_name, made.distro, made.release) == ("mine-1.0.amd64", "debian", "12")
    assert "chrony" in made.packages
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and list(tmp_path.iterdir()) == [path]


def test_a_child_names_its_parent_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "nodes").mkdir()
    (tmp_path / "base/site.toml").write_text(PARENT)
    path = tmp_path / "nodes/gpu.toml"
    assert main(["new", str(path), "--extends", str(tmp_path / "base/site.toml"), "--name", "gpu-node", "-q"]) == 0
    assert 'extends = ["../base/site.toml"]' in path.read_text()
    made = load_recipe(path)
    assert (made.name, made.version, made.packages) == ("gpu-node", "1.0", ("vim-tiny",))


def test_a_dry_run_prints_the_recipe_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    assert main(["new", str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(["new", str(path), "--json"]) == 0
    assert path.read_text() == printed
    told = json.loads(capsys.readouterr().out)
    assert told == {"name": "mine", "path": str(path), "recipe": printed, "written": True}


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_nothing_is_ever_overwritten(dry_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.toml").write_text("precious")
    (tmp_path / "link.toml").symlink_to("nowhere")
    (tmp_path / "folder.toml").mkdir()
    for name in ("file", "link", "folder"):
        assert main(["new", str(tmp_path / f"{name}.toml"), *dry_run]) == 1
        assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "file.toml").read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.toml"
    link = os.link

    def late(source: str, target: Path) -> None:
        path.write_text("another's")
        link(source, target)

    monkeypatch.setattr(new.os, "link", late)
    with pytest.raises(CapsulekitError, match="is there already"):
        new.create(path, "mine", dry_run=False)
    assert path.read_text() == "another's" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["a b.toml"], 2, "a capsule cannot be called a b"),
        (["r.toml", "--name", "../x"], 2, "a capsule cannot be called ../x"),
        (["r.toml", "--distro", "ubunto"], 2, "did you mean ubuntu"),
        (["r.toml", "--distro", "../recipes/debian"], 2, "there is no recipe for ../recipes/debian 12 amd64 compute"),
        (["r.toml", "--arch", "vax"], 2, "there is no recipe for debian 12 vax compute"),
        (["r.toml", "--extends", "none.toml"], 1, "there is no recipe none.toml"),
        (["r.toml", "--extends", "bad.toml"], 1, "bad.toml:1: unknown section capsul"),
        (["r.toml", "--extends", "bad.toml", "--role", "login"], 2, "exclude each other"),
        (["none/r.toml"], 1, "there is no folder none"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_left(
    words: list[str], status: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("[capsul]\n")
    assert main(["new", *words]) == status
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.toml"]


# --- editing

COMMENTED = """# The head.
extends = ["a.toml"] # a parent

[capsule]  # who it is
# its name
name = 'old' # by hand
version = "1"

# about packages
[packages]
include = [
  "vim",  # an editor
]
"""


def test_a_changed_value_leaves_every_comment_and_every_other_byte() -> None:
    changed = change(COMMENTED, "capsule", "name", "new")
    assert changed == COMMENTED.replace("'old'", '"new"')
    assert change(changed, "", "extends", ["b.toml"]) == changed.replace('["a.toml"]', '["b.toml"]')


def test_a_key_and_a_section_that_are_missing_are_added() -> None:
    changed = change(change(COMMENTED, "capsule", "init", "/init"), "image", "level", 9)
    assert changed.startswith(COMMENTED.split("\n# about")[0].rstrip("\n"))
    assert 'init = "/init"' in changed and changed.rstrip().endswith("[image]\nlevel = 9")
    assert all(line in changed.splitlines() for line in COMMENTED.splitlines())
