"""Never a stale result: whatever goes into a step changes the step's identity, and what does not, does not.

DECIDES says of every field what it decides. A field that nobody has classified fails here.
"""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from build_inputs import (
    LOCK,
    PLACES,
    RECIPE,
    Inputs,
    Maker,
    before,
    changed,
    identities,
    in_lock,
    in_recipe,
    inputs_of_steps,
    package,
    package_of,
    values_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from initramfs_builder.stage1 import Stage1Config

from capsulekit import build, cache, initrd, kernel, stage1
from capsulekit.cache import Cache, Step
from capsulekit.lock.model import Archive, Key, Lock, Package
from capsulekit.recipe.model import Group, Recipe, RootFile, Script, User
from capsulekit.rootfs import root
from capsulekit.stage1recipe import Stage1Recipe

# --- what each field decides

INSTALLED = {"install", "install more", "rootfs"}
ALL = {*INSTALLED, "modules", "initrd", "papers", "stage1"}
# The recipe's and the lock's whole text is in the papers, so whatever changes one of them changes those.
TEXT = {"papers"}
ROOT = {"rootfs", "papers"}
STAGE1_ONLY = {"stage1"}

DECIDES: dict[type, dict[str, set[str]]] = {
    Recipe: {
        "source": set(),  # where it lay
        "text": TEXT,
        "init": ROOT,
        "groups": ROOT, "users": ROOT, "files": ROOT, "scripts": ROOT,
        "enable": ROOT, "disable": ROOT, "mask": ROOT,
        "hybridize": ROOT,
        "base": {*INSTALLED, "modules", "papers"},
        "kernel_modules": {"modules", "papers"},
        "stage2_modules": {"initrd", "papers"},
        "level": {"rootfs", "modules", "papers"},
        # No layer holds these: they are in the manifest or in members of their own (see IN_MEMBERS).
        "name": TEXT, "version": TEXT, "cmdline": TEXT, "provision": TEXT, "configure": TEXT,
        # What is asked of the archive and of the builder; the answer is the lock (see Package), or a refusal.
        "distro": TEXT, "release": TEXT, "arch": TEXT, "stages": TEXT, "kernel_package": TEXT, "kernel_extra": TEXT,
        "release_level": TEXT, "ram_max": TEXT,
    },
    Group: {"name": ROOT, "gid": ROOT},
    User: dict.fromkeys(
        ("name", "uid", "gid", "groups", "home", "shell", "password", "ssh_keys", "system"), ROOT
    ),
    RootFile: {"path": ROOT, "data": ROOT, "mode": ROOT, "owner": ROOT, "group": ROOT},
    Script: {"name": ROOT, "data": ROOT},
    Lock: {
        "distro": {*INSTALLED, "papers"}, "release": {*INSTALLED, "papers"}, "arch": {*INSTALLED, "papers"},
        "epoch": ALL, "tools": ALL,
        "sets": {*INSTALLED, "modules", "initrd", "papers", "stage1"},
        # Why it is these packages; a lock whose request or normaliser is another's is refused (build.given_lock).
        "request": TEXT, "normaliser": TEXT, "archives": TEXT, "keys": TEXT,
    },
    # A package is its bytes: the rest says where they come from, or is in them.
    Package: {
        "sha256": {*INSTALLED, "papers"},
        "stage": {*INSTALLED, "papers"},
        "name": TEXT, "version": TEXT, "arch": TEXT, "size": TEXT, "path": TEXT, "by": TEXT,
    },
    Archive: {"suite": TEXT, "release": TEXT},
    Key: {"fingerprint": TEXT, "text": TEXT},
    root.RootFacts: {
        "owners": TEXT, "licences": TEXT,
        # In the manifest, in the build's report, or what modules were made for (see build._parts).
        "unpacked": set(), "paths": set(), "merged_usr": set(), "acls": set(), "unmatched": set(), "hybrid": set(),
    },
    Stage1Recipe: dict.fromkeys(
        ("distro", "release", "arch", "components", "packages", "kernel", "config", "level"), STAGE1_ONLY
    ),
    Stage1Config: dict.fromkeys(
        ("arch", "profile", "binaries", "modules", "applets", "files", "firmware", "microcode"), STAGE1_ONLY
    ),
}  # fmt: skip


EVERY = [(kind, name) for kind, names in DECIDES.items() for name in names]


@pytest.mark.parametrize("kind", DECIDES, ids=lambda kind: kind.__name__)
def test_every_field_is_classified(kind: type) -> None:
    there = {f.name for f in fields(kind)}
    assert there == set(DECIDES[kind]), f"say in DECIDES what the fields of {kind.__name__} decide"


def test_every_class_that_a_recipe_or_a_lock_is_made_of_is_classified() -> None:
    def within(kind: Any) -> Iterator[type]:
        if is_dataclass(kind):
            yield kind  # type: ignore[misc]
            for hint in typing.get_type_hints(kind).values():
                yield from within(hint)
        for part in typing.get_args(kind):
            yield from within(part)

    found = {kind for top in (Recipe, Lock, root.RootFacts, Stage1Recipe) for kind in within(top)}
    assert found == set(DECIDES)


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda v: v if isinstance(v, str) else v.__name__)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_changed_field_makes_its_steps_again_and_no_others(kind: type, name: str, data: st.DataObject) -> None:
    strategy = values_of(kind, name)
    old: list[Any] = []

    def change(was: Any) -> Any:
        old.append(getattr(was, name))
        return replace(was, **{name: data.draw(strategy.filter(lambda value: value != old[0]))})

    assert changed(PLACES[kind](change)(Inputs())) == DECIDES[kind][name]


@pytest.mark.parametrize(
    ("part", "number", "steps"),
    [
        ("rootfs", 0, INSTALLED),
        ("rootfs", 1, {"install more", "rootfs"}),
        ("kernel", 0, {"modules", "initrd", "stage1"}),
        ("initrd", 0, {"initrd", "stage1"}),
    ],
)
@given(digest=st.binary(min_size=32, max_size=32).map(bytes.hex))
@settings(max_examples=12, deadline=None)
def test_a_package_decides_its_part_from_its_stage_on(part: str, number: int, steps: set[str], digest: str) -> None:
    change = package_of(part, number)(lambda p: replace(p, sha256=digest))
    assert changed(change(Inputs())) == {*steps, "papers"}


def test_a_package_more_or_less_and_the_order_of_a_recipes_lists_count() -> None:
    def sets(**changed: tuple[Package, ...]) -> Inputs:
        return in_lock(lambda lock: replace(lock, sets={**lock.sets, **changed}))(Inputs())

    base, more = LOCK.sets["rootfs"]
    assert changed(sets(rootfs=(base, package("new", 1), more))) == {"install more", "rootfs", "papers"}
    assert "rootfs" in changed(sets(rootfs=(base,)))
    assert changed(sets(kernel=(*LOCK.sets["kernel"], package("firmware")))) == {
        "modules", "initrd", "papers", "stage1",
    }  # fmt: skip
    lists = {"scripts": (*RECIPE.scripts, Script("t", b"")), "enable": ("a", "b"), "mask": ("a", "b")}
    for name, items in lists.items():
        one = in_recipe(lambda r, n=name, i=items: replace(r, **{n: i}))(Inputs())
        two = in_recipe(lambda r, n=name, i=items: replace(r, **{n: i[::-1]}))(Inputs())
        assert identities(one)["rootfs"] != identities(two)["rootfs"], name


def test_nothing_of_one_text_can_be_taken_for_another() -> None:
    """A text moved from one field to its neighbour is another input."""
    users = [(User("a", groups=("b", "c")),), (User("a", groups=("b,c",)),)]
    assert len({identities(in_recipe(lambda r, u=u: replace(r, users=u))(Inputs()))["rootfs"] for u in users}) == 2
    units = [{"enable": ("a",), "disable": ()}, {"enable": (), "disable": ("a",)}]
    assert len({identities(in_recipe(lambda r, u=u: replace(r, **u))(Inputs()))["rootfs"] for u in units}) == 2


# --- what decides beside recipe and lock


def test_modules_of_a_merged_and_an_unmerged_root_are_two_results() -> None:
    texts = {json.dumps(kernel.inputs(RECIPE, LOCK, merged)) for merged in (True, False)}
    assert len(texts) == 2


def test_only_a_hybrid_capsule_has_the_network_layer_in_stage_2_and_its_modules() -> None:
    local = in_recipe(lambda recipe: replace(recipe, hybridize=()))
    assert changed(local(Inputs())) == {"rootfs", "modules", "initrd", "papers"}
    every = in_recipe(lambda recipe: replace(recipe, hybridize=(), kernel_modules=()))
    both = in_recipe(lambda recipe: replace(recipe, kernel_modules=()))
    assert identities(every(Inputs()))["modules"] == identities(both(Inputs()))["modules"], "all are there anyway"


def test_another_normaliser_makes_the_layer_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before()
    monkeypatch.setattr(root, "VERSION", root.VERSION + 1)
    assert changed(Inputs()) == {"rootfs"}


def test_another_command_that_makes_caches_makes_every_install_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before()
    commands = root.regenerate_commands()
    monkeypatch.setattr(root, "regenerate_commands", lambda: commands[:-1])
    assert changed(Inputs()) == INSTALLED


def test_another_distribution_has_other_code_and_other_papers() -> None:
    assert changed(Inputs(code=("capsulekit.rpm",))) == INSTALLED
    assert changed(Inputs(purl=("rpm", "rocky"))) == {"papers"}


@pytest.mark.parametrize(
    ("stage", "module", "step"),
    [("stage1", stage1, "stage1"), ("stage2", initrd, "initrd"), ("stage2-hybrid", initrd, "initrd")],
)
def test_every_file_of_a_stages_shell_counts(
    stage: str, module: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before()
    shell = tmp_path / stage
    shutil.copytree(module.shell_dir(stage), shell)
    real = module.shell_dir
    monkeypatch.setattr(module, "shell_dir", lambda name: shell if name == stage else real(name))
    assert changed(Inputs()) == set(), "where it lies does not count"
    files = [p for p in sorted(shell.rglob("*")) if p.is_file()]
    assert files
    for file in files:
        text = file.read_bytes()
        file.write_bytes(text + b"\n")
        assert changed(Inputs()) == {step}, file
        file.write_bytes(text)
        renamed = file.rename(file.with_name("renamed"))
        assert changed(Inputs()) == {step}, file
        renamed.rename(file)
    (shell / "new").write_bytes(b"")
    assert changed(Inputs()) == {step}


# --- what no step decides is in the capsule itself

# Fields whose bytes are in members that are written anew by every build, so nothing of them can be stale.
IN_MEMBERS: dict[tuple[type, str], set[str]] = {
    (Recipe, "name"): {"recipe.toml", "capsule.toml"},
    (Recipe, "version"): {"recipe.toml", "capsule.toml"},
    (Recipe, "cmdline"): {"recipe.toml", "capsule.toml"},
    (Recipe, "init"): {"recipe.toml", "capsule.toml"},
    (Recipe, "distro"): {"recipe.toml", "capsule.toml"},
    (Recipe, "release"): {"recipe.toml", "capsule.toml"},
    (Recipe, "arch"): {"recipe.toml", "capsule.toml"},
    (Recipe, "hybridize"): {"recipe.toml", "capsule.toml", "hybridize"},
    (Recipe, "provision"): {"recipe.toml", "capsule.toml", "provision"},
    (Recipe, "configure"): {"recipe.toml", "configure.toml"},
    (Recipe, "stages"): {"recipe.toml"},
    (Recipe, "kernel_package"): {"recipe.toml"},
    (Recipe, "kernel_extra"): {"recipe.toml"},
    (Recipe, "release_level"): {"recipe.toml"},
    (Recipe, "ram_max"): {"recipe.toml"},
    (Lock, "epoch"): {"capsule.lock", "capsule.toml"},
    (Lock, "request"): {"capsule.lock"},
    (Lock, "normaliser"): {"capsule.lock"},
    (Lock, "archives"): {"capsule.lock"},
    (Lock, "keys"): {"capsule.lock"},
    (Archive, "suite"): {"capsule.lock"},
    (Archive, "release"): {"capsule.lock"},
    (Key, "fingerprint"): {"capsule.lock"},
    (Key, "text"): {"capsule.lock"},
    (Package, "name"): {"capsule.lock"},
    (Package, "version"): {"capsule.lock"},
    (Package, "arch"): {"capsule.lock"},
    (Package, "size"): {"capsule.lock"},
    (Package, "path"): {"capsule.lock"},
    (Package, "by"): {"capsule.lock"},
    (root.RootFacts, "unpacked"): {"capsule.toml"},
    (root.RootFacts, "acls"): {"capsule.toml", "layers/rootfs.acl"},
    (root.RootFacts, "owners"): {"sbom.cdx.json"},
    (root.RootFacts, "licences"): {"sbom.cdx.json"},
}
# Where a recipe lay; and what is said to the author at the end of a build, or only on the way.
NOT_IN_A_CAPSULE = {
    (Recipe, "source"),
    *((root.RootFacts, name) for name in ("paths", "merged_usr", "unmatched", "hybrid")),
}
IN_A_CAPSULE = [
    (kind, name)
    for kind, name in EVERY
    if kind not in (Stage1Recipe, Stage1Config) and (kind, name) not in NOT_IN_A_CAPSULE
]


@dataclass
class Kept:
    """A real cache with small parts in it, made of nothing but their identities; members by name, each as a digest."""

    cache: Cache
    parts: dict[str, Step] = field(default_factory=dict)

    def members(self, inputs: Inputs) -> dict[str, str]:
        files = {"rootfs": [root.LAYER, root.ACL], "modules": [kernel.LAYER, "vmlinuz"], "initrd": ["initrd.img"]}
        steps = inputs_of_steps(inputs)
        made = {}
        for name, contents in files.items():

            def make(folder: Path, name: str = name, contents: list[str] = contents) -> None:
                for file in contents:
                    (folder / file).write_text(cache._identify(name, steps[name])[1])
                (folder / "release").write_text("6.1")
                (folder / "unpacked").write_text("1")
                (folder / initrd.REMARKS).write_text("")
                (folder / "facts.json").write_text(json.dumps(vars(inputs.facts)))

            made[name] = self.cache.step(name, {**steps[name], "facts": vars(inputs.facts)}, make)
        done = build._describe(inputs.recipe, inputs.lock, Maker(inputs), self.cache, build._Parts(**made))
        texts = {m.name: m.source.read_bytes() if isinstance(m.source, Path) else m.source for m in done.members}
        return {"capsule.toml": repr(done.manifest), **{name: repr(text) for name, text in texts.items()}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(Cache(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(("kind", "name"), IN_A_CAPSULE, ids=lambda v: v if isinstance(v, str) else v.__name__)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_the_capsule_is_another(kind: type, name: str, data: st.DataObject, kept: Kept) -> None:
    strategy = values_of(kind, name)

    def change(was: Any) -> Any:
        old = getattr(was, name)
        return replace(was, **{name: data.draw(strategy.filter(lambda value: value != old))})

    one, two = kept.members(Inputs()), kept.members(PLACES[kind](change)(Inputs()))
    differing = {member.partition("/")[0] if member.startswith("provision/") else member
                 for member in one.keys() | two.keys() if one.get(member) != two.get(member)}  # fmt: skip
    assert differing >= IN_MEMBERS.get((kind, name), {"capsule.toml"}), differing
    assert "capsule.toml" in differing or kind is not Recipe, "the manifest holds the recipe's digest"
