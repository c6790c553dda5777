"""Who owns each path of a capsule: packages, the recipe's parts, the normaliser's rows, the kernel's packages.

Three ledgers travel in the capsule: the package database in its root, the bill of materials (paths that changed while
the recipe's parts were applied) and the lock (which package was asked for by which).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from capsulekit.capsule.manifest import EDIT, HYBRID, Manifest
from capsulekit.capsule.read import CapsuleFile
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.image.listing import FILE, Layer, copy_file, read_files
from capsulekit.lock import model as locks
from capsulekit.lock.model import Lock, Package
from capsulekit.metadata.parts import RecipeParts
from capsulekit.metadata.paths import escape, plain, unescape
from capsulekit.metadata.sbom import LEDGER, MEMBER
from capsulekit.metadata.tree import MODULES, ROOT, Tree, layers_of, tree_of
from capsulekit.rootfs.table import ANY, Rules

DPKG_INFO = "var/lib/dpkg/info"
RPM_DATABASES = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite")
# What the build itself lays down in a root (rootfs/customize.sh).
BUILD = {
    "etc/.updated": "as new as the rest, so that systemd does not rebuild caches at every boot",
    "var/.updated": "as new as the rest, so that systemd does not rebuild caches at every boot",
    "etc/apt/sources.list": "the archives of the release, instead of those of the build",
}
# The phases of a build in their order, as the ledger names them; the last that changed a path has the last word.
PHASES = ("users", "services", "script", "caches")
BYTE_CODE = re.compile(r"(.*)/__pycache__/([^/.]+)\.[^/]+\.pyc")
EDITED = "changed at a site, after the build"
MAX_SBOM = 64 << 20


@dataclass(frozen=True)
class Cause:
    """Why a path is as it is.

    ``kind`` is package, kernel, install (made by packages' scripts), users, file, service, script, caches, build,
    normaliser, hybridize or edit.

    ``chain`` leads from a package through those that asked for it up to "recipe" or "essential"; ``place`` says where
    the recipe asks for it.
    """

    kind: str
    name: str
    detail: str = ""
    chain: tuple[str, ...] = ()
    place: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


@dataclass(frozen=True)
class Owners:
    """The ledgers of one capsule. Paths are relative to the root."""

    tree: Tree
    lock: Lock | None
    recipe: RecipeParts
    packages: Mapping[str, Sequence[str]]
    parts: Mapping[str, Sequence[str]]
    scripts: Mapping[str, bytes] = field(repr=False)
    manifest: Manifest
    family: str

    def of(self, path: str) -> tuple[Cause, ...]:
        """Everything that made a path what it is, the last word first; empty for a path nobody knows."""
        found = self.tree.find(path)
        causes: list[Cause] = []
        if found and EDIT.fullmatch(found[0]):
            causes.append(Cause("edit", found[0], EDITED))
        if found and found[0] == HYBRID:
            causes.append(Cause("hybridize", ", ".join(self.manifest.hybridize), "not sent to nodes, only exported"))
        for row in self.rules.matching(path)[:1]:
            causes.append(Cause("normaliser", f"/{row.glob}", f"{row.action}: {row.why}"))
        for owner in sorted(self.parts.get(path, ()), key=lambda owner: -_phase(owner)):
            causes += self._part(owner, path)
        causes += [Cause("file", name, place=self.recipe.where(f"file {name}")) for name in self._files.get(path, ())]
        if path in BUILD:
            causes.append(Cause("build", "", BUILD[path]))
        causes += [self.package(name) for name in self.packages.get(path, ())]
        if found and found[0] == MODULES:
            causes += self.kernel()
        if found and all(cause.kind in ("normaliser", "hybridize") for cause in causes):
            causes.append(self._installed(path))
        return tuple(causes)

    def package(self, name: str, part: str = "rootfs") -> Cause:
        """The cause for a package of a part of the lock; ``name`` may carry dpkg's ``:ARCH``."""
        package = self._locked[part].get(name.partition(":")[0])
        if package is None:
            return Cause("package", name, "not in the lock" if self.lock else "")
        chain = self._chain(package, part)
        asked = self.recipe.where(f"package {chain[-2]}") if chain[-1] == "recipe" else ""
        return Cause("package", package.name, f"{package.version} {package.arch}", chain, asked)

    def kernel(self) -> list[Cause]:
        """The packages that brought the kernel and its modules."""
        return [replace(self.package(name, "kernel"), kind="kernel") for name in self._locked["kernel"]]

    def stage2(self) -> list[Cause]:
        """The packages whose programs are in the initrd."""
        return [self.package(name, "initrd") for name in self._locked["initrd"]]

    def _part(self, owner: str, path: str) -> list[Cause]:
        """A phase of the build, as the ledger names it, taken to the line of the recipe where that can be told."""
        kind, _, name = owner.partition(" ")
        if kind == "script":
            return [Cause(kind, name, place=self.recipe.where(owner))]
        if kind == "file":
            return []  # told by the recipe itself
        if kind == "caches":
            return [] if self.rules.matching(path) else [Cause(kind, "", "made again when all else was done")]
        asked = {"users": ("user", "group"), "services": ("service",)}.get(kind, ())
        named = [o for o in self.recipe.owners if o.partition(" ")[0] in asked]
        # A unit's links have its name; an account's files have its name or are lists of all accounts.
        telling = [o for o in named if o.partition(" ")[2] in path] or named
        split = [(o.partition(" "), self.recipe.where(o)) for o in telling]
        return [Cause(part[0], part[2], place=where) for part, where in split] or [Cause(kind, name)]

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """Real path -> the names under which the recipe's [files] has it."""
        found: dict[str, list[str]] = defaultdict(list)
        for owner in self.recipe.owners:
            kind, _, name = owner.partition(" ")
            if kind == "file":
                found[self.tree.real(plain(name))].append(name)
        return found

    @cached_property
    def _installed_packages(self) -> set[str]:
        """Every package of the root's own database."""
        return {name for names in self.packages.values() for name in names}

    @cached_property
    def rules(self) -> Rules:
        """The normaliser's rows for roots of this family."""
        return Rules(self.family)

    def _chain(self, package: Package, part: str) -> tuple[str, ...]:
        chain, seen = [package.name], {package.name}
        while package.by:
            chain.append(package.by)
            if package.by in seen or package.by not in self._locked[part]:
                break
            seen.add(package.by)
            package = self._locked[part][package.by]
        return tuple(chain)

    @cached_property
    def _locked(self) -> dict[str, dict[str, Package]]:
        sets = self.lock.sets if self.lock else {}
        return {part: {p.name: p for p in sets.get(part, ())} for part in locks.SETS}

    def _installed(self, path: str) -> Cause:
        """A path in no package's list: what the packages' own scripts made of it."""
        if path.startswith(f"{DPKG_INFO}/"):
            owner = path.removeprefix(f"{DPKG_INFO}/").rpartition(".")[0]
            if owner in self._installed_packages:
                return self.package(owner)
        detail = "made while packages were installed"
        if (code := BYTE_CODE.fullmatch(path)) and (owners := self.packages.get(f"{code[1]}/{code[2]}.py")):
            return Cause("install", owners[0], f"{detail}; byte code of /{escape(code[1])}/{escape(code[2])}.py")
        found = self.tree.find(path)
        target, hops = (found[1].hard if found else "") or self.tree.follow(path), 0
        while target is not None and hops < 3:  # alternatives are links to links
            if target in self.packages:
                return Cause("install", self.packages[target][0], f"{detail}; it leads to /{escape(target)}")
            target, hops = self.tree.follow(target), hops + 1
        if not self._installed_packages:
            return Cause("install", ", ".join(sorted(self._locked["rootfs"])), "the root keeps no package database")
        word = re.compile(rb"(?<![\w/.-])/" + re.escape(path.encode("utf-8", "surrogateescape")) + rb"(?![\w-])")
        naming = sorted({name for name, text in self.scripts.items() if word.search(text)})
        return Cause("install", ", ".join(naming), detail + "; its scripts name the path" * bool(naming))


def load_owners(capsule: CapsuleFile, manifest: Manifest) -> Owners:
    """Read the ledgers out of a capsule file; what an older or packed one lacks is empty. Raises TrustError."""
    tree = tree_of(capsule, manifest)
    root = layers_of(capsule, manifest).get(ROOT)
    try:
        lock = locks.loads(capsule.read_member("capsule.lock").decode("utf-8", "replace"), "capsule.lock")
    except TrustError:
        raise
    except CapsulekitError:
        lock = None  # of another format: packages are known by name only
    parts: dict[str, list[str]] = defaultdict(list)
    for owner, path in _ledger(capsule):
        parts[tree.real(path)].append(owner)
    return Owners(
        tree=tree,
        lock=lock,
        recipe=RecipeParts(capsule.read_member("recipe.toml", MAX_SBOM)),
        packages=owned_paths(root, tree) if root else {},
        parts=parts,
        scripts=_install_scripts(root) if root else {},
        manifest=manifest,
        family=_family(tree),
    )


def _family(tree: Tree) -> str:
    """Whose package manager installed the root, as the normaliser's table says it."""
    if tree.find("var/lib/dpkg/status"):
        return "deb"
    return "rpm" if any(tree.find(path) for path in RPM_DATABASES) else ANY


def owned_paths(root: Layer, tree: Tree) -> dict[str, list[str]]:
    """Real path -> the packages that list it, sorted by name, from the package database inside a root's layer."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, paths in sorted(package_files(root, tree).items()):
        for path in paths:
            found[tree.real(path)].append(name)
    return found


def package_files(root: Layer, tree: Tree) -> dict[str, list[str]]:
    """Package -> its paths, from the package database inside a root's layer; empty when it keeps none.

    dpkg: one ``info/NAME[:ARCH].list`` a package, a path a line (dpkg-query(1)); RPM: its SQLite database.
    """
    lists = read_files(root, [f"{DPKG_INFO}/*.list"])
    found = {
        name.removeprefix(f"{DPKG_INFO}/").removesuffix(".list"): [
            plain(line) for line in data.decode("utf-8", "surrogateescape").splitlines()
        ]
        for name, data in lists.items()
    }
    for path in RPM_DATABASES:
        here = tree.find(path)
        if here is not None and here[0] == ROOT and here[1].kind == FILE:
            for owned, package in _rpm_files(root, path).items():
                found.setdefault(package, []).append(plain(owned))
    return found


def _rpm_files(root: Layer, path: str) -> Mapping[str, str]:
    from capsulekit.rpm.rpmdb import file_owners

    with tempfile.TemporaryDirectory(prefix="capsulekit-") as folder:
        database = Path(folder) / "rpmdb.sqlite"
        with database.open("wb") as out:
            copy_file(root, path, out)
        owners: Mapping[str, str] = file_owners(database)
        return owners


def _install_scripts(root: Layer) -> dict[str, bytes]:
    """dpkg's scripts of every package, by the package's name."""
    kinds = ("preinst", "postinst", "config")
    found = read_files(root, [f"{DPKG_INFO}/*.{kind}" for kind in kinds])
    texts: dict[str, bytes] = defaultdict(bytes)
    for name, data in found.items():
        texts[name.removeprefix(f"{DPKG_INFO}/").rpartition(".")[0].partition(":")[0]] += data
    return texts


def _ledger(capsule: CapsuleFile) -> Iterator[tuple[str, str]]:
    """(owner, path) of what the recipe's parts changed, out of the bill of materials."""
    if MEMBER not in capsule.members:
        return
    try:
        bill = json.loads(capsule.read_member(MEMBER, MAX_SBOM))
        properties = bill["metadata"]["component"].get("properties", [])
        rows = [(str(row["name"]), str(row["value"])) for row in properties]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
        raise TrustError(f"malformed {MEMBER}: {wrong}") from None
    for name, value in rows:
        if name.startswith(LEDGER):
            yield unescape(name.removeprefix(LEDGER)), plain(unescape(value))


def _phase(owner: str) -> int:
    kind = owner.partition(" ")[0]
    return PHASES.index(kind) if kind in PHASES else -1
