"""Never a stale result: a step's identity holds the digest of all the code that its bytes come from."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache as remembered
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
from build_inputs import Inputs, before, changed

from capsulekit import build, cache
from capsulekit.apt.distro import AptDistro
from capsulekit.cache import Cache, code_identity
from capsulekit.distro.base import Distro
from capsulekit.rpm.distro import RpmDistro

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
    **{(step, "inside.lib.sh"): "enters a root; here packages are only unpacked"
       for step in ("modules", "initrd", "stage1")},
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
    shells = {shell for path in paths for shell in shell_of(path)}
    return paths | {shell for shell in shells if (step, shell.name) not in NO_BYTES_OF}


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


FAMILIES = [("debian", "12", AptDistro), ("rocky", "9", RpmDistro)]


@pytest.mark.parametrize(("name", "release", "family"), FAMILIES)
def test_a_familys_code_is_its_own_and_its_releases(
    name: str, release: str, family: type[Distro], tmp_path: Path
) -> None:
    made = build.distro(name, release, "amd64", Cache(tmp_path))
    assert isinstance(made, family)
    assert set(made.code) == {f"capsulekit.distro.{name}", family.__module__.rpartition(".")[0]}


def test_code_is_python_and_shell_and_nothing_else() -> None:
    """What code_identity looks at is all there is; py.typed is for type checkers."""
    for top in OURS:
        path = source(top)
        assert path is not None
        others = {p.name for p in path.parent.rglob("*") if p.is_file() and p.suffix not in (".py", ".sh", ".pyc")}
        assert others <= {"py.typed"}
