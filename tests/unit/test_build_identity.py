"""Never a stale result: whatever goes into a step changes the step's identity, and what does not, does not.

DECIDES says of every field what it decides. A field that nobody has classified fails here.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache as remembered
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from initramfs_builder.stage1 import Stage1Config

from capsulekit import build, cache, initrd, kernel, stage1
from capsulekit.apt.distro import AptDistro
from capsulekit.cache import Cache, Step, code_identity
from capsulekit.distro.base import Distro
from capsulekit.lock.model import Archive, Key, Lock, Package
from capsulekit.recipe.flat import flatten, question_tables
from capsulekit.recipe.model import Group, Recipe, RootFile, Script, User
from capsulekit.rootfs import root
from capsulekit.rpm.distro import RpmDistro
from capsulekit.stage1 import Stage1Recipe

Change = Callable[[Any], Any]

# --- what is changed


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
STAGE1 = Stage1Recipe("debian", "12", "amd64", ("a",), "linux", Stage1Config(("b",), ("m",), ("c",), ("f",)), 9)
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
    Stage1Recipe: dict.fromkeys(("distro", "release", "arch", "packages", "kernel", "config", "level"), STAGE1_ONLY),
    Stage1Config: dict.fromkeys(("binaries", "modules", "applets", "files"), STAGE1_ONLY),
}  # fmt: skip


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


@pytest.mark.parametrize(("stage", "module", "step"), [("stage1", stage1, "stage1"), ("stage2", initrd, "initrd")])
def test_every_file_of_a_stages_shell_counts(
    stage: str, module: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before()
    shell = tmp_path / stage
    shutil.copytree(module.shell_dir(stage), shell)
    monkeypatch.setattr(module, "shell_dir", {stage: shell}.__getitem__)
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


# --- code

OURS = ("capsulekit", "initramfs_builder")
# Where a package's files are taken out of it, and what is said there of its release.
UNPACKING = ("capsulekit.apt.deb", "capsulekit.rpm.dnf", "capsulekit.distro.debian", "capsulekit.distro.rocky")
# Where each step's work begins.
STARTS: dict[str, tuple[str, ...]] = {
    "install": ("capsulekit.distro.debian",),
    "rootfs": ("capsulekit.rootfs.root", "capsulekit.distro.debian"),
    "modules": ("capsulekit.kernel", *UNPACKING),
    "initrd": ("capsulekit.initrd", *UNPACKING),
    "papers": ("capsulekit.metadata.sbom", "capsulekit.metadata.provenance"),
    "stage1": ("capsulekit.stage1", *UNPACKING),
}
# What these steps import and no byte of theirs comes from.
NO_BYTES = {
    "capsulekit": "a name",
    "capsulekit.build": "asks for the steps",
    "capsulekit.cache": "keeps results, and checks them",
    "capsulekit.distro.base": "finds the distribution",
    "capsulekit.errors": "says what went wrong",
    "capsulekit.files": "digests and locks; a digest is what it is",
    "capsulekit.lock": "a name",
    "capsulekit.lock.model": "what it says is among the inputs",
    "capsulekit.recipe": "a name",
    "capsulekit.recipe.model": "what it says is among the inputs",
    "capsulekit.memory": "where a root is unpacked; tests/integration/test_build_steps.py compares the two",
    "capsulekit.progress": "shows what is done",
    "capsulekit.watch": "shows what has arrived",
    "capsulekit.trust": "whose packages; they are among the inputs",
    "capsulekit.trust.openpgp": "whose packages; they are among the inputs",
    "capsulekit.tools": "what it says is among the inputs",
}
NO_BYTES_OF = {
    **{(step, "capsulekit.run"): "starts programs; only in a root's namespaces it says what they see"
       for step in ("modules", "initrd", "papers", "stage1")},
    **{(step, "capsulekit.image.squashfs"): "the kernel's layer is another step's" for step in ("initrd", "stage1")},
    **{(step, "capsulekit.apt.distro"): "asks capsulekit.apt.deb" for step in ("modules", "initrd", "stage1")},
    **{(step, "capsulekit.rpm.distro"): "asks capsulekit.rpm.dnf" for step in ("modules", "initrd", "stage1")},
    ("install", "capsulekit.rootfs.normalise"): "its version goes into the lock",
}  # fmt: skip


@remembered
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def source(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@remembered
def imported(path: Path) -> frozenset[str]:
    """The modules of ours that a file imports, wherever in it, or runs by -m out of its shell."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for shell in shell_of(path):
        names |= set(re.findall(r"-m (capsulekit[\w.]+)", shell.read_text()))
    return frozenset(name for name in names if name.split(".")[0] in OURS and source(name) is not None)


def shell_of(path: Path) -> set[Path]:
    """The shell files that a file of ours names, and those which they read."""
    named = {n.value for n in ast.walk(tree_of(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    found = {p for p in all_shell() if any(re.search(rf"(^|/){re.escape(p.name)}$", name) for name in named)}
    return found | {p for p in all_shell() for script in found if f"/{p.name}" in script.read_text()}


@remembered
def all_shell() -> tuple[Path, ...]:
    return tuple(Path(cache.__file__).parent.rglob("*.sh"))


def needed(step: str) -> set[Path]:
    """Every file of ours that a step's bytes can come from."""
    seen: set[str] = set()
    todo = list(STARTS[step])
    while todo:
        module = todo.pop()
        if module in seen or module in NO_BYTES or (step, module) in NO_BYTES_OF:
            continue
        seen.add(module)
        path = source(module)
        assert path is not None, module
        todo += imported(path)
    paths = {path for module in seen if (path := source(module)) is not None and path.read_bytes().strip()}
    return paths | {shell for path in paths for shell in shell_of(path)}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Path]]:
    """Our own code in another place, which is where identities are taken from: file -> its copy."""
    before()
    homes = {top: Path(path).parent for top in OURS if (path := source(top))}
    for top, home in homes.items():
        shutil.copytree(home, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))

    def copy_of(path: Path) -> Path:
        top = next(top for top, home in homes.items() if path.is_relative_to(home))
        return tmp_path / top / path.relative_to(homes[top])

    def find(name: str) -> ModuleSpec | None:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        return ModuleSpec(name, None, origin=str(copy_of(Path(spec.origin))))

    monkeypatch.setattr(cache, "find_spec", find)
    code_identity.cache_clear()
    yield copy_of
    code_identity.cache_clear()


def test_every_file_that_a_steps_bytes_come_from_counts(copied: Callable[[Path], Path]) -> None:
    """The files are found by following imports and names of shell files; each is changed in turn."""
    assert changed(Inputs()) == set(), "where the code lies does not count"
    wanted = {step: needed(step) for step in STARTS}
    names = {step: {p.name for p in paths} for step, paths in wanted.items()}
    assert {"customize.sh", "inside.lib.sh", "apart.sh", "place.py", "closure.py", "run.py"} <= names["rootfs"]
    assert {"add.sh", "inside.lib.sh", "mmdebstrap.py", "debian.py"} <= names["install"]
    missed = []
    for path in sorted(set().union(*wanted.values())):
        copy = copied(path)
        text = copy.read_bytes()
        copy.write_bytes(text + b"\n")
        code_identity.cache_clear()
        again = changed(Inputs())
        missed += [f"{step}: {path}" for step in STARTS if path in wanted[step] and step not in again]
        copy.write_bytes(text)
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize("distro", [AptDistro, RpmDistro])
def test_a_familys_code_is_named_by_its_packages(distro: type[Distro], tmp_path: Path) -> None:
    made = build.distro({AptDistro: "debian", RpmDistro: "rocky"}[distro], {AptDistro: "12", RpmDistro: "9"}[distro],
                        "amd64", Cache(tmp_path))  # fmt: skip
    assert isinstance(made, distro)
    assert {f"capsulekit.distro.{made.name}", distro.__module__.rpartition(".")[0]} <= set(made.code)  # type: ignore[attr-defined]


def test_code_is_python_and_shell_and_nothing_else() -> None:
    """What code_identity looks at is all there is; py.typed is for type checkers."""
    for top in OURS:
        path = source(top)
        assert path is not None
        others = {p.name for p in path.parent.rglob("*") if p.is_file() and p.suffix not in (".py", ".sh", ".pyc")}
        assert others <= {"py.typed"}


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
                (folder / "facts.json").write_text(json.dumps(vars(inputs.facts)))

            made[name] = self.cache.step(name, {**steps[name], "facts": vars(inputs.facts)}, make)
        done = build._describe(inputs.recipe, inputs.lock, Maker(inputs), self.cache, build._Parts(**made))
        texts = {m.name: m.source.read_bytes() if isinstance(m.source, Path) else m.source for m in done.members}
        return {"capsule.toml": repr(done.manifest), **{name: repr(text) for name, text in texts.items()}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(Cache(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda v: v if isinstance(v, str) else v.__name__)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_the_capsule_is_another(kind: type, name: str, data: st.DataObject, kept: Kept) -> None:
    if kind in (Stage1Recipe, Stage1Config) or (kind, name) in NOT_IN_A_CAPSULE:
        return
    strategy = values_of(kind, name)

    def change(was: Any) -> Any:
        old = getattr(was, name)
        return replace(was, **{name: data.draw(strategy.filter(lambda value: value != old))})

    one, two = kept.members(Inputs()), kept.members(PLACES[kind](change)(Inputs()))
    differing = {member.partition("/")[0] if member.startswith("provision/") else member
                 for member in one.keys() | two.keys() if one.get(member) != two.get(member)}  # fmt: skip
    assert differing >= IN_MEMBERS.get((kind, name), {"capsule.toml"}), differing
    assert "capsule.toml" in differing or kind is not Recipe, "the manifest holds the recipe's digest"


# Where a recipe lay; and what is said to the author at the end of a build, or only on the way.
NOT_IN_A_CAPSULE = {
    (Recipe, "source"),
    *((root.RootFacts, name) for name in ("paths", "merged_usr", "unmatched", "hybrid")),
}
