"""The recipe inside a capsule is the whole recipe: read back, it is the same, to the byte."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.flat import flatten, question_tables
from capsulekit.recipe.load import load_recipe, loads_recipe
from capsulekit.recipe.model import Group, Recipe, RootFile, Script, User

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._]{0,5}", fullmatch=True)
# What TOML, the variables' syntax and editors trip over.
TEXTS = st.text("ab \"'\\@{}[]#=\n\r\t\x00\x1b\x7f\x9béü\u2028\u202e\U0001f600", max_size=12)
SCRIPTS = st.builds(lambda n, t: Script(n, b"#!/bin/sh\n" + t.replace("\0", "").encode()), NAMES, TEXTS)
NUMBERED = SCRIPTS.map(lambda s: replace(s, name="10-" + s.name))
PATHS = st.lists(st.from_regex(r"[a-z \"\\@{]{1,4}", fullmatch=True), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
LINES = TEXTS.map(lambda t: "".join(c for c in t if c.isprintable()))
USERS = st.builds(
    User, st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True), uid=st.none() | st.integers(0, 9),
    gid=st.none() | st.integers(0, 9), groups=st.sampled_from([(), ("adm",), ("adm", "disk")]),
    home=st.sampled_from(["", "/home/a-b"]), shell=st.sampled_from(["", "/bin/sh"]),
    password=st.sampled_from([None, "!", "$y$x"]), system=st.booleans(),
    ssh_keys=st.sampled_from([(), ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 @{me}",)]),
)  # fmt: skip


def unique(what: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[tuple[Any, ...]]:
    """Tuples of up to three, none twice by ``key``."""
    return st.lists(what, max_size=3, unique_by=lambda item: getattr(item, key)).map(tuple)


def by(key: str) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    return lambda items: tuple(sorted(items, key=lambda item: getattr(item, key)))


@st.composite
def questions(draw: st.DrawFn) -> bytes:
    keys = sorted(draw(st.sets(st.from_regex(r"[a-z][a-z0-9_-]{0,4}", fullmatch=True), max_size=3)))
    made = []
    for key in keys:
        question: dict[str, object] = {"prompt": draw(LINES), "type": "text", "required": draw(st.booleans())}
        if draw(st.booleans()):
            question |= {"target": f"/etc/{key}", "template": draw(TEXTS) + f"{{{key}}}"}
        made.append((key, question | ({"default": draw(LINES)} if draw(st.booleans()) else {})))
    return question_tables(made)


@st.composite
def stages(draw: st.DrawFn) -> tuple[tuple[str, ...], ...]:
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    cut = sorted(draw(st.sets(st.integers(1, max(1, len(names))), max_size=2)))
    parts = [names[a:b] for a, b in zip([0, *cut], [*cut, len(names)], strict=True)]
    return tuple(tuple(sorted(part)) for part in parts if part)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "source": st.just("r.toml"), "text": st.just(""), "name": NAMES, "version": NAMES, "distro": NAMES,
    "release": NAMES, "arch": NAMES, "init": PATHS, "cmdline": LINES, "stages": stages(), "kernel_package": NAMES,
    "kernel_extra": st.lists(NAMES, unique=True, max_size=2).map(tuple),
    "kernel_modules": st.lists(NAMES, unique=True, max_size=2).map(tuple),
    "stage2_modules": st.lists(NAMES, unique=True, max_size=2).map(tuple),
    "base": st.sampled_from(["essential", "extract", "packed"]),
    "groups": unique(st.builds(Group, st.sampled_from("abc"), st.none() | st.integers(0, 9)), "name").map(by("name")),
    "users": unique(USERS, "name").map(by("name")),
    "enable": st.sampled_from([(), ("a.service",), ("b.socket", "a.service")]),
    "disable": st.sampled_from([(), ("c.timer",)]),
    "mask": st.sampled_from([(), ("a@\\x2d.service",)]),
    "scripts": unique(SCRIPTS, "name"),
    "files": unique(
        st.builds(RootFile, PATHS, st.binary(max_size=6) | TEXTS.map(str.encode), st.integers(0, 0o7777)), "path"
    ).map(by("path")),
    "hybridize": st.sampled_from([(), ("/usr/share/**",), ("/opt/[!]a]*", "/usr/@{x}")]),
    "provision": st.tuples(unique(NUMBERED, "name").map(by("name")), unique(NUMBERED, "name").map(by("name"))).map(
        lambda two: tuple((state, s) for state, found in zip(("init", "ready"), two, strict=True) for s in found)
    ),
    "configure": questions(), "level": st.integers(1, 22), "release_level": st.integers(1, 22),
    "ram_max": st.none() | st.sampled_from([1, 1000, 1 << 10, 900 << 20, 3 << 30]),
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.builds(Recipe, **FIELDS))
def test_a_flattened_recipe_read_back_is_the_same_recipe_in_the_same_bytes(recipe: Recipe) -> None:
    whole = replace(recipe, text=flatten(recipe))
    again = loads_recipe(whole.text, "r.toml")
    assert again == whole
    assert again.digest == whole.digest
    assert tomllib.loads(whole.text), "and any reader of TOML can read it"


def test_the_property_above_varies_every_field_of_a_recipe() -> None:
    # A field that flatten() forgets is lost on the way into the capsule.
    assert set(FIELDS) == {field.name for field in fields(Recipe)}


FULL = """
[capsule]
name = "tiny"
version = "@{v}"
[distro]
name = "debian"
release = "12"
[kernel]
package = "linux"
[packages]
include = ["zsh", "bash"]
[files."/bin/blob"]
source = "blob"
mode = "4755"
[files."/etc/motd"]
content = "one line"
[scripts]
rootfs = ["s.sh"]
[variables]
v = "2"
"""


def test_the_spelling_is_the_one_that_authors_read_and_that_old_capsules_have(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"\x7fELF\0" + bytes(range(128, 200)))
    (tmp_path / "s.sh").write_bytes(b'#!/bin/sh\necho "\\n" @{x}\n')
    (tmp_path / "r.toml").write_text(FULL.replace('"4755"', '"04755"'))
    assert load_recipe(tmp_path / "r.toml").text == (Path(__file__).parents[1] / "data/recipe/flat.toml").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('extends = ["x.toml"]\n', "c.vnfs:1: extends must be left out: a flattened recipe has no parents"),
        ('files."/x".source = "/etc/shadow"\n', "this recipe may name no file, not '/etc/shadow'"),
        ('scripts.rootfs = ["/etc/shadow"]\n', "this recipe may name no file, not '/etc/shadow'"),
    ],
)
def test_the_recipe_of_a_capsule_reads_no_file(more: str, message: str) -> None:
    rest = '[capsule]\nname = "x"\nversion = "1"\n[distro]\nname = "d"\nrelease = "1"\n[kernel]\npackage = "k"\n'
    with pytest.raises(CapsulekitError) as caught:
        loads_recipe(more + rest, "c.vnfs")
    assert message in caught.value.message
