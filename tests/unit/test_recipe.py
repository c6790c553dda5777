"""Recipes: what is wrong is named with file, line, key and way out; parents are merged; hostile files end in a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.load import load_recipe
from capsulekit.recipe.model import Recipe
from capsulekit.recipe.settings import FILE_SETTINGS, SETTINGS, reference

ROOT = Path(__file__).parents[2]
BASE = """[capsule]
name = "tiny"
version = "1.0"

[distro]
name = "debian"
release = "12"

[packages]
include = ["bash", "g++", "python3.11", "libc6:amd64"]

[kernel]
package = "linux-image-cloud-amd64"
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def recipe(folder: Path, text: str = BASE) -> Recipe:
    return load_recipe(write(folder / "r.toml", text))


def refused(folder: Path, text: str) -> CapsulekitError:
    with pytest.raises(CapsulekitError) as caught:
        recipe(folder, text)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message and caught.value.message.isprintable()
    return caught.value


def test_a_recipe_that_cannot_be_read_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "b.toml", "it is not UTF-8 text")):
        with pytest.raises(CapsulekitError) as caught:
            load_recipe(path)
        assert caught.value.message == f"{path}: the recipe cannot be read: {why}"


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert made.full_name == "tiny-1.0.amd64"
    assert made.packages == ("bash", "g++", "libc6:amd64", "python3.11")
    assert (made.init, made.cmdline, made.base, made.level) == ("/sbin/init", "", "essential", 3)
    assert made.stage2_modules == ("loop", "squashfs", "overlay")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("debian*.toml")), ids=lambda p: p.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).name == path.stem


# (what is added or replaced, the line in error, words of the message, words of the hint)
WRONG = [
    (BASE + '\n[pakages]\ninclude = ["x"]\n', 15, "unknown section pakages", "did you mean packages?"),
    (BASE.replace("version", "versoin"), 3, "unknown key versoin in [capsule]", "did you mean version?"),
    (BASE + "[image]\nlevle = 4\n", 15, "unknown key levle in [image]", "did you mean level?"),
    (BASE + "[image]\nzzz = 4\n", 15, "unknown key zzz in [image]", "known here: level"),
    ('distor = "x"\n' + BASE, 1, "unknown section distor", "did you mean distro?"),
    (BASE + '[image]\nlevel = "high"\n', 15, "[image] level must be a number from 1 to 22, not 'high'", None),
    (BASE + "[image]\nlevel = true\n", 15, "level must be a number", None),
    (BASE + "# a comment\n[image]\n\nlevel = 23\n", 17, "[image] level must be a number from 1 to 22, not 23", None),
    (BASE.replace('"tiny"', '"ti ny"'), 2, "[capsule] name must be a name of letters", None),
    (BASE.replace('"tiny"', "7"), 2, "[capsule] name must be a name", None),
    (BASE.replace('"bash"', '"Bash"'), 10, "[packages] include must be a list of package names, not 'Bash'", None),
    (BASE.replace('"bash"', '"bash-"'), 10, "not 'bash-'", None),
    (BASE.replace('"bash"', '"-oDir=/"'), 10, "not '-oDir=/'", None),
    (BASE.replace('"bash"', "3"), 10, "[packages] include must be a list of package names, not 3", None),
    (BASE.replace('["bash", "g++", "python3.11", "libc6:amd64"]', '"bash"'), 10, "must be a list of package", None),
    (BASE + '[rootfs]\nbase = "tiny"\n', 15, '[rootfs] base must be "essential" or "extract", not \'tiny\'', None),
    (BASE + '[services]\nenable = ["ssh"]\n', 15, '[services] enable must be a list of unit names, such as', None),
    (BASE + '[services]\nmask = ["-x.timer"]\n', 15, "[services] mask", None),
    (BASE + '[hybridize]\npaths = ["usr/share"]\n', 15, "[hybridize] paths must be a list of globs", None),
    (BASE + '[hybridize]\npaths = ["/a\\nb"]\n', 15, "[hybridize] paths must be a list of globs", None),
    (BASE + '[files."etc/motd"]\ncontent = "x"\n', 14, "etc/motd must be a full path without . or ..", None),
    (BASE + '[files."/../etc/motd"]\ncontent = "x"\n', 14, "must be a full path", None),
    (BASE + '[files."/etc/motd"]\ncontnet = "x"\n', 15, "unknown key contnet", "did you mean content?"),
    (BASE + '[files."/etc/motd"]\nmode = "0644"\n', 14, "/etc/motd must be either content or source", None),
    (BASE + '[files."/etc/motd"]\ncontent = "x"\nmode = "rw"\n', 16, 'mode must be octal text such as "0644"', None),
    (BASE + '[files."/etc/motd"]\nsource = "none"\n', 15, "source must be an existing file, not 'none'", None),
    (BASE + '[scripts]\nrootfs = ["none.sh"]\n', 15, "[scripts] rootfs must be an existing file, not 'none.sh'", None),
    (BASE + '[scripts]\nrootfs = ["/dev/zero"]\n', 15, "[scripts] rootfs must be an existing file", None),
    ('extends = "base.toml"\n' + BASE, 1, "extends must be a list of recipe files", None),
    ('extends = ["none.toml"]\n' + BASE, 1, "extends must be a list of recipe files, not 'none.toml'", None),
    (BASE.replace('"bash"', '"!vim"'), 10, '"!vim" takes out what a parent puts in', None),
    ("packages = 3\n", 1, "packages must be a section [packages]", None),
    (BASE + "files = 3\n", 14, "unknown key files in [kernel]", None),
    (BASE + 'x = "', 15, "not valid TOML", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message", "hint"), WRONG, ids=lambda v: str(v)[-30:])
def test_an_error_names_file_line_key_and_what_was_expected(
    tmp_path: Path, text: str, line: int, message: str, hint: str | None
) -> None:
    error = refused(tmp_path, text)
    assert error.message.startswith(f"{tmp_path}/r.toml:{line}: ") or "not valid TOML" in error.message, error.message
    assert message in error.message
    assert hint is None or (error.hint and hint in error.hint)


@pytest.mark.parametrize(
    ("section", "key"), [(s, k) for s, keys in SETTINGS.items() for k, v in keys.items() if v.required]
)
def test_a_missing_setting_is_named_with_its_meaning(tmp_path: Path, section: str, key: str) -> None:
    text = "".join(line + "\n" for line in BASE.splitlines() if not line.startswith(key + " "))
    if section == "distro" and key == "name":
        text = BASE.replace('name = "debian"\n', "")
    elif section == "capsule" and key == "name":
        text = BASE.replace('name = "tiny"\n', "")
    error = refused(tmp_path, text)
    assert f"[{section}] {key} is missing" in error.message
    assert error.hint and SETTINGS[section][key].help in error.hint


HOSTILE = [
    "a = 1\na = 2\n",
    "[capsule]\n[capsule]\n",
    "x = " + "[" * 5000,
    "\x00",
    "[[capsule]]\nname = 'x'\n",
    "capsule = []\n",
    "extends = [[1]]\n",
    "extends = [1]\n",
    "extends = ['.']\n",
    "extends = ['\\u0000']\n",
    "[packages]\ninclude = [{a = 1}]\n",
    "[packages]\ninclude = [2020-01-01]\n",
    "[files]\n'/x' = 3\n",
    "[files]\n'/x\\n' = {content='x'}\n",
    '[files]\n"/x\\ny" = {content="x"}\n',
    '["\\u001b[2J"]\n',
    "[capsule]\nname = " + "9" * 5000 + "\n",
    "[image]\nlevel = 1e400\n",
    "[image]\nlevel = nan\n",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: repr(t[:25]))
def test_a_hostile_recipe_ends_in_one_line(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="[]{}=\"'.\\#\n abc!/0é\x00", max_size=60))
def test_no_text_makes_the_reader_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(text)
    with pytest.raises(CapsulekitError):
        load_recipe(path)


def test_bytes_that_are_no_text_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "b.toml", tmp_path, tmp_path / "none.toml"):
        with pytest.raises(CapsulekitError, match=str(path)):
            load_recipe(path)


# --- parents


def test_parents_are_merged_in_order_and_the_recipe_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", BASE + "[image]\nlevel = 5\n")
    write(tmp_path / "b.toml", '[capsule]\ncmdline = "b"\n[image]\nlevel = 6\n[packages]\ninclude = ["vim", "bash"]\n')
    made = recipe(
        tmp_path, 'extends = ["a.toml", "b.toml"]\n[capsule]\nname = "child"\n[packages]\ninclude = ["less"]\n'
    )
    assert (made.name, made.version, made.cmdline, made.level) == ("child", "1.0", "b", 6)
    assert made.packages == ("bash", "g++", "less", "libc6:amd64", "python3.11", "vim")


def test_an_item_with_an_exclamation_mark_takes_a_parents_item_out(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", BASE + '[hybridize]\npaths = ["/usr/share/**", "/opt/**"]\n')
    made = recipe(tmp_path, 'extends = ["a.toml"]\n[packages]\ninclude = ["!g++"]\n[hybridize]\npaths = ["!/opt/**"]\n')
    assert "g++" not in made.packages and "!" not in made.text
    assert made.hybridize == ("/usr/share/**",)


def test_grandparents_and_a_shared_parent_are_read_once_each_way(tmp_path: Path) -> None:
    write(tmp_path / "top.toml", BASE)
    write(tmp_path / "left.toml", 'extends = ["top.toml"]\n[packages]\ninclude = ["vim"]\n')
    write(tmp_path / "sub/right.toml", 'extends = ["../top.toml"]\n[packages]\ninclude = ["less"]\n')
    made = recipe(tmp_path, 'extends = ["left.toml", "sub/right.toml"]\n')
    assert made.packages == ("bash", "g++", "less", "libc6:amd64", "python3.11", "vim")


def test_a_circle_of_parents_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'extends = ["r.toml"]\n')
    error = refused(tmp_path, 'extends = ["a.toml"]\n')
    assert "a.toml:1: the recipe extends itself" in error.message
    assert error.hint == "r.toml → a.toml → r.toml"


def test_an_error_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "[packages]\nincldue = []\n")
    assert f"{tmp_path}/a.toml:2: unknown key incldue" in refused(tmp_path, 'extends = ["a.toml"]\n').message


# --- files and scripts


def test_paths_are_relative_to_the_recipe_that_holds_them(tmp_path: Path) -> None:
    write(tmp_path / "base/one.sh", "#!/bin/sh\necho one\n")
    write(tmp_path / "base/10-late", "#!/bin/sh\n")
    write(tmp_path / "motd", "hello\n")
    write(tmp_path / "base/a.toml", BASE + '[scripts]\nrootfs = ["one.sh"]\n[provision]\ninit = ["10-late"]\n')
    write(tmp_path / "05-early", "#!/bin/sh\n")
    made = recipe(
        tmp_path,
        'extends = ["base/a.toml"]\n[provision]\ninit = ["05-early"]\n'
        '[files."/etc/motd"]\nsource = "motd"\nmode = "0600"\n',
    )
    assert [s.name for s in made.scripts] == ["one.sh"] and made.scripts[0].data.endswith(b"echo one\n")
    assert [s.name for s in made.provision] == ["05-early", "10-late"], "in the order of their numbers"
    assert [(f.path, f.data, f.mode) for f in made.files] == [("/etc/motd", b"hello\n", 0o600)]
    assert str(tmp_path) not in made.text, "no path of the author's machine in the capsule"


def test_a_parents_script_can_be_taken_out(tmp_path: Path) -> None:
    write(tmp_path / "base/one.sh", "#!/bin/sh\n")
    write(tmp_path / "base/a.toml", BASE + '[scripts]\nrootfs = ["one.sh"]\n')
    assert recipe(tmp_path, 'extends = ["base/a.toml"]\n[scripts]\nrootfs = ["!base/one.sh"]\n').scripts == ()


def test_a_file_of_the_recipe_replaces_its_parents_file_whichever_way_it_is_given(tmp_path: Path) -> None:
    write(tmp_path / "mine", "mine\n")
    write(tmp_path / "a.toml", BASE + '[files."/etc/motd"]\ncontent = "theirs"\nmode = "0600"\n')
    made = recipe(tmp_path, 'extends = ["a.toml"]\n[files."/etc/motd"]\nsource = "mine"\n')
    assert [(f.data, f.mode) for f in made.files] == [(b"mine\n", 0o600)]


@pytest.mark.parametrize(
    ("section", "name", "content", "message"),
    [
        ("scripts]\nrootfs", "one.py", "#!/usr/bin/python3\n", "must start with #!/bin/sh"),
        ("provision]\ninit", "late", "#!/bin/sh\n", "must be named NN-name"),
        ("provision]\ninit", "1-late", "#!/bin/sh\n", "must be named NN-name"),
        ("provision]\ninit", "10-a b", "#!/bin/sh\n", "must be named NN-name"),
    ],
)
def test_a_script_that_would_fail_on_the_node_is_refused(
    tmp_path: Path, section: str, name: str, content: str, message: str
) -> None:
    write(tmp_path / name, content)
    assert message in refused(tmp_path, BASE + f'[{section} = ["{name}"]\n').message


def test_two_scripts_of_one_name_and_huge_or_unreadable_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/10-x", "#!/bin/sh\n")
    write(tmp_path / "b/10-x", "#!/bin/sh\n")
    assert "same file name" in refused(tmp_path, BASE + '[provision]\ninit = ["a/10-x", "b/10-x"]\n').message
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(17 << 20)
    assert "larger than 16 MiB" in refused(tmp_path, BASE + '[files."/x"]\nsource = "huge"\n').message
    os.mkfifo(tmp_path / "pipe")
    assert "an existing file" in refused(tmp_path, BASE + '[files."/x"]\nsource = "pipe"\n').message


def test_the_digest_follows_every_byte_that_matters_and_nothing_else(tmp_path: Path) -> None:
    one = recipe(tmp_path / "one")
    write(tmp_path / "two/parent.toml", BASE + "# a comment\n")
    assert recipe(tmp_path / "two", 'extends = ["parent.toml"]\n').digest == one.digest
    with_file = BASE + '[files."/etc/motd"]\nsource = "motd"\n'
    digests = {one.digest, recipe(tmp_path, BASE.replace("1.0", "1.1")).digest}
    for text in ("a", "b"):
        write(tmp_path / "motd", text)
        digests.add(recipe(tmp_path, with_file).digest)
    digests.add(recipe(tmp_path, with_file + 'mode = "0600"\n').digest)
    assert len(digests) == 5


# --- the reference page


def test_the_reference_page_is_current_and_names_every_setting() -> None:
    page = (ROOT / "docs/reference/recipe.md").read_text()
    assert page == reference(), "write capsulekit.recipe.settings.reference() to docs/reference/recipe.md"
    for key in [*FILE_SETTINGS, *(k for keys in SETTINGS.values() for k in keys)]:
        assert f"| `{key}` |" in page
