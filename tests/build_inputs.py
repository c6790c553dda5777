"""What a build starts from, for the tests of its steps' identities: a recipe and a lock, and any change of them."""

from __future__ import annotations

import hashlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache as remembered
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from initramfs_builder.stage1 import Stage1Config

from capsulekit import build, cache, initrd, kernel, stage1
from capsulekit.cache import Cache, Step
from capsulekit.distro.base import Distro
from capsulekit.lock.model import Archive, Key, Lock, Package
from capsulekit.recipe.flat import flatten, question_tables
from capsulekit.recipe.model import Group, Recipe, RootFile, Script, User
from capsulekit.rootfs import root
from capsulekit.stage1recipe import Stage1Recipe

Change = Callable[[Any], Any]


def package(name: str, stage: int = 0) -> Package:
    return Package(name, "1", "amd64", 1000, hashlib.sha256(name.encode()).hexdigest(), f"pool/{name}.deb", stage, "x")


LOCK = Lock(
    "debian", "12", "amd64", 1_700_000_000, "request", 1, (Archive("stable", "0" * 64),), (Key("A" * 40, "key"),),
    {"rootfs": (package("base"), package("more", 1)), "kernel": (package("linux"),), "initrd": (package("busybox"),)},
    {"mmdebstrap": "1", "squashfs-tools": "4"},
)  # fmt: skip
BARE = Recipe(
    "r.toml", "", "steps", "1", "debian", "12", "amd64", "/sbin/init", "quiet", (("base",), ("more",)), "linux",
    ("loop",), ("overlay",), "extract", (Group("hpc", 700),), (User("admin", 1, 2, ("hpc",), "/a", "/b", "!", ("k",)),),
    ("a.service",), ("b.service",), ("c.service",), (Script("s", b"#!/bin/sh\n"),), (RootFile("/f", b"x", 0o644),),
    ("/usr/share/**",), ("firmware",), (("init", Script("10-p", b"#!/bin/sh\n")),),
    question_tables([("site", {"prompt": "?", "type": "text"})]), ram_max=1 << 40,
)  # fmt: skip
RECIPE = replace(BARE, text=flatten(BARE))
STAGE1 = Stage1Recipe(
    "debian", "12", "amd64", ("main",), ("a",), "linux",
    Stage1Config("amd64", "generic", ("b",), ("m",), ("c",), ("f",), ("w",), ("u",)), 9,
)  # fmt: skip
FACTS = root.RootFacts(1, 2, False, 1, ("row",), {"users": ["etc/passwd"]}, {"base": "MIT"}, ("/usr/share/**: 1 MB",))


@dataclass(frozen=True)
class Inputs:
    """All that a build starts from, and what it learns of the root on the way."""

    recipe: Recipe = RECIPE
    lock: Lock = LOCK
    facts: root.RootFacts = FACTS
    stage1: Stage1Recipe = STAGE1
    code: tuple[str, ...] = ("capsulekit.apt", "capsulekit.distro.debian")
    purl: tuple[str, str] = ("deb", "debian")


class Maker(Distro):
    """As much of a distribution as a step's identity asks for; nothing is installed here."""

    def __init__(self, inputs: Inputs) -> None:
        self.code, self.purl = inputs.code, inputs.purl

    tools = resolve = fetch = install = finish = unpack = is_kernel = None  # type: ignore[assignment]


Maker.__abstractmethods__ = frozenset()


class Asking(Cache):
    """Notes what the step of the papers is asked with; the step itself has nothing in it."""

    def __init__(self) -> None:
        self.inputs: Mapping[str, Any] = {}

    def step(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Step:
        self.inputs = inputs
        return None  # type: ignore[return-value]


def inputs_of_steps(inputs: Inputs) -> dict[str, Mapping[str, Any]]:
    """Step -> what its identity is made of; the installed root has two stages here."""
    recipe, lock, maker, asking = inputs.recipe, inputs.lock, Maker(inputs), Asking()
    build._papers(recipe, lock, maker, asking, inputs.facts, {})
    return {
        "install": root.install_inputs(recipe, lock, maker, 0),
        "install more": root.install_inputs(recipe, lock, maker, 1),
        "rootfs": root.inputs(recipe, lock, maker),
        "modules": kernel.inputs(recipe, lock, build._likely_merged(recipe)),
        "initrd": initrd.inputs(recipe, lock),
        "papers": asking.inputs,
        "stage1": stage1._inputs(inputs.stage1, lock),
    }


def identities(inputs: Inputs) -> dict[str, str]:
    return {step: cache._identify(step, asked)[1] for step, asked in inputs_of_steps(inputs).items()}


@remembered
def before() -> dict[str, str]:
    return identities(Inputs())


def changed(inputs: Inputs) -> set[str]:
    """The steps that are made again."""
    now = identities(inputs)
    return {step for step, identity in before().items() if now[step] != identity}


# --- changes


def in_recipe(change: Change) -> Change:
    """A changed recipe has another text, as load_recipe would give it."""

    def apply(inputs: Inputs) -> Inputs:
        recipe = change(inputs.recipe)
        return replace(inputs, recipe=recipe if recipe.text != RECIPE.text else replace(recipe, text=flatten(recipe)))

    return apply


def first_of(name: str) -> Callable[[Change], Change]:
    """Changes the first item of a recipe's list."""
    return lambda change: in_recipe(lambda r: replace(r, **{name: (change(getattr(r, name)[0]),)}))


def in_lock(change: Change) -> Change:
    return lambda inputs: replace(inputs, lock=change(inputs.lock))


def package_of(part: str, number: int = 0) -> Callable[[Change], Change]:
    def apply(change: Change) -> Change:
        def changed_lock(lock: Lock) -> Lock:
            packages = list(lock.sets[part])
            packages[number] = change(packages[number])
            return replace(lock, sets={**lock.sets, part: tuple(packages)})

        return in_lock(changed_lock)

    return apply


# Where an object of each class lies in the inputs.
PLACES: dict[type, Callable[[Change], Change]] = {
    Recipe: in_recipe,
    Group: first_of("groups"),
    User: first_of("users"),
    RootFile: first_of("files"),
    Script: first_of("scripts"),
    Lock: in_lock,
    Package: package_of("rootfs"),
    Archive: lambda change: in_lock(lambda lock: replace(lock, archives=(change(lock.archives[0]),))),
    Key: lambda change: in_lock(lambda lock: replace(lock, keys=(change(lock.keys[0]),))),
    root.RootFacts: lambda change: lambda inputs: replace(inputs, facts=change(inputs.facts)),
    Stage1Recipe: lambda change: lambda inputs: replace(inputs, stage1=change(inputs.stage1)),
    Stage1Config: lambda change: (
        lambda inputs: replace(inputs, stage1=replace(inputs.stage1, config=change(inputs.stage1.config)))
    ),
}

# --- values

WORDS = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)
QUESTIONS = WORDS.map(lambda prompt: question_tables([("site", {"prompt": prompt, "type": "text"})]))
SCRIPTS = WORDS.map(lambda word: b"#!/bin/sh\n: " + word.encode())
NUMBERED = WORDS.map(lambda word: f"10-{word}")
OWN: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (Recipe, "configure"): QUESTIONS,
    (Recipe, "init"): WORDS.map("/{}".format),
    (Recipe, "provision"): st.lists(
        st.tuples(st.just("init"), st.builds(Script, NUMBERED, SCRIPTS)), max_size=2, unique_by=lambda p: p[1].name
    ).map(tuple),
    (Recipe, "ram_max"): st.integers(1 << 40, 1 << 50),
    (Lock, "sets"): st.tuples(WORDS, WORDS, WORDS).map(
        lambda names: {part: (package(name),) for part, name in zip(LOCK.sets, names, strict=True)}
    ),
    (Script, "data"): SCRIPTS,
    (Package, "stage"): st.integers(1, 9),
    (Recipe, "base"): st.just("essential"),
    # An empty one takes the network out of stage 2 (see test_build_identity).
    (Recipe, "hybridize"): st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    (root.RootFacts, "acls"): st.just(0),
}  # fmt: skip


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    plain = {str: WORDS, int: st.integers(0, 1 << 40), bool: st.booleans(), bytes: st.binary(max_size=8)}
    if kind in plain:
        return plain[kind]
    if is_dataclass(kind):
        return st.builds(kind, **{f.name: values_of(kind, f.name) for f in fields(kind)})
    of = typing.get_args(kind)
    if typing.get_origin(kind) is types.UnionType:
        return st.one_of(*(st.none() if one is type(None) else values(one) for one in of))
    if typing.get_origin(kind) is tuple and of[-1] is ...:
        return st.lists(values(of[0]), max_size=3).map(tuple)
    if typing.get_origin(kind) is tuple:
        return st.tuples(*map(values, of))
    if isinstance(kind, types.GenericAlias) or typing.get_origin(kind) is not None:
        origin = typing.get_origin(kind)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return st.dictionaries(values(of[0]), values(of[1]), max_size=3)
        return st.lists(values(of[0]), max_size=3)
    raise AssertionError(f"give values for {kind} here")


def values_of(kind: type, name: str) -> st.SearchStrategy[Any]:
    """Values of a class's field."""
    return OWN[kind, name] if (kind, name) in OWN else values(typing.get_type_hints(kind)[name])
