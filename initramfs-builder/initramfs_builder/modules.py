"""Kernel modules for an image: which files a list of names needs, their firmware, and the index modprobe reads.

The indexes are depmod's text files (depmod(8), modules.dep(5)); aliases are matched on the whole name and every hit is
kept. An image's modprobe is busybox's, which reads modules.dep, modules.alias and modules.builtin as text and knows no
soft dependencies (so those that name a module are written into modules.dep as dependencies), or kmod's, which reads
binary indexes made of the same. Links are followed inside the root only: a tree may come from anywhere.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from initramfs_builder.errors import CapsulekitError
from initramfs_builder.modindex import Values, binary_index
from initramfs_builder.tree import Found, Tree

COMPRESSED = re.compile(r"\.(xz|zst|gz)$")
FIRMWARE_SUFFIXES = ("", ".zst", ".xz")
WILD = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Firmware:
    """Firmware that modules name: files found in the tree, and names it does not have."""

    found: tuple[Found, ...]
    missing: tuple[str, ...]


@dataclass
class _Index:
    """depmod's text files, names with "_" for "-"."""

    deps: dict[str, tuple[str, ...]] = field(default_factory=dict)  # file → files it needs, last one loaded first
    files: dict[str, str] = field(default_factory=dict)  # module → file
    aliases: list[tuple[str, str, str]] = field(default_factory=list)  # fixed start, pattern, module
    soft: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)  # module → wanted before, after
    weak: dict[str, list[str]] = field(default_factory=dict)
    builtin: set[str] = field(default_factory=set)  # names and aliases


class ModuleTree:
    """The modules of one kernel release under ``root``/lib/modules or ``root``/usr/lib/modules.

    Raises CapsulekitError when the release is not there or depmod has not run on it.
    """

    def __init__(self, root: Path, release: str) -> None:
        self.tree = Tree(root)
        self.release = release
        found = self.tree.resolve(f"usr/lib/modules/{release}")
        if found is None:
            raise CapsulekitError(f"{root} holds no modules of kernel {release}")
        self.folder = found.host
        if not _is_plain(self.folder / "modules.dep"):
            raise CapsulekitError(f"{self.folder} has no modules.dep", hint=f"run: depmod -b {root} {release}")
        self._index = _read_index(self.folder)

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """Files (as modules.dep names them, sorted) of the named modules and all they need.

        A name is a module, an alias, or, with a slash in it, a glob over file names ("kernel/drivers/net/*"). What is
        built into the kernel needs no file. Soft and weak dependencies are taken when they exist. Raises
        CapsulekitError with the chain when a module or a file is missing.
        """
        taken: dict[str, None] = {}
        todo: list[tuple[str, tuple[str, ...]]] = []
        for name in names:
            hits = self._lookup(name)
            if hits is None:
                raise CapsulekitError(f"kernel {self.release} has no module {name}", hint=f"looked in {self.folder}")
            todo.extend((file, (name,)) for file in hits)
        while todo:
            file, chain = todo.pop()
            if file in taken:
                continue
            if self._host(file) is None:
                raise CapsulekitError(f"{self.folder / file} is missing: wanted by {', wanted by '.join(chain[::-1])}")
            taken[file] = None
            todo.extend((dep, (*chain, file)) for dep in self._index.deps.get(file, ()))
            for name in self._wishes(file):
                todo.extend((hit, (*chain, file)) for hit in self._lookup(name) or ())
        return tuple(sorted(taken))

    def image_name(self, file: str) -> str:
        """The module's path in an image: usr/lib/modules/RELEASE/…, never compressed."""
        return f"usr/lib/modules/{self.release}/{_plain(file)}"

    def contents(self, file: str) -> bytes | Path:
        """The module as the kernel loads it, its signature untouched: the file itself, or its unpacked bytes."""
        path = self._must(file)
        return _unpacked(path) if COMPRESSED.search(file) else path

    def firmware(self, files: Iterable[str]) -> Firmware:
        """Firmware the modules name in their .modinfo (globs allowed), looked up in this tree's lib/firmware."""
        found: list[Found] = []  # one file may be here twice, led to by different links
        missing: set[str] = set()
        for name in sorted({name for file in files for name in self._firmware_names(file)}):
            hits = list(self._firmware_files(name))
            found.extend(hits)
            if not hits:
                missing.add(name)
        return Firmware(tuple(found), tuple(sorted(missing)))

    def index(self, files: Iterable[str]) -> dict[str, bytes]:
        """The text files (name → content) that modprobe needs in an image that holds only these module files."""
        kept = sorted(files)
        names = {_module(file) for file in kept}
        dep = "".join(
            f"{_plain(file)}:{''.join(f' {_plain(need)}' for need in self._load_before(file))}\n" for file in kept
        )
        texts = {"modules.dep": dep}
        for name, column in (("modules.alias", -1), ("modules.softdep", 1)):
            lines = _lines(self.folder / name)
            texts[name] = "".join(f"{line}\n" for line in lines if _norm(line.split()[column]) in names)
        texts["modules.builtin"] = "".join(f"{line}\n" for line in _lines(self.folder / "modules.builtin"))
        return {name: os.fsencode(text) for name, text in texts.items()}

    def binary_indexes(self, files: Iterable[str]) -> dict[str, bytes]:
        """The same (name → content) as kmod's modprobe reads it."""
        texts = {name: os.fsdecode(text).splitlines() for name, text in self.index(files).items()}
        deps = {_module(line.partition(":")[0]): [(at, line)] for at, line in enumerate(texts["modules.dep"])}
        aliases: dict[str, list[tuple[int, str]]] = {}
        for at, line in enumerate(texts["modules.alias"]):
            _, pattern, module = line.split()
            aliases.setdefault(_norm(pattern), []).append((at, _norm(module)))
        tables: dict[str, Values] = {
            "dep": deps,
            "alias": aliases,
            "symbols": {},  # asked for by symbol only in programs that no image has
            "builtin": {_module(line): [(0, "")] for line in texts["modules.builtin"]},
            "builtin.alias": {},
        }
        return {f"modules.{name}.bin": binary_index(values) for name, values in tables.items()}

    def _host(self, file: str) -> Path | None:
        """Where a file that modules.dep names lies, or None."""
        found = self.tree.resolve(f"usr/lib/modules/{self.release}/{file}")
        return found.host if found is not None and found.host.is_file() else None

    def _must(self, file: str) -> Path:
        host = self._host(file)
        if host is None:
            raise CapsulekitError(f"{self.folder / file} is missing")
        return host

    def _lookup(self, name: str) -> list[str] | None:
        """Files for a module name, glob or alias; empty when it is built in, None when nobody knows it."""
        if "/" in name:
            return fnmatch.filter(self._index.deps, name) or None
        norm = _norm(name)
        if norm in self._index.files:
            return [self._index.files[norm]]
        hits = {
            module
            for start, pattern, module in self._index.aliases
            if norm.startswith(start) and fnmatch.fnmatchcase(norm, pattern)
        }
        if hits:
            return [self._index.files[hit] for hit in sorted(hits) if hit in self._index.files]
        return [] if norm in self._index.builtin else None

    def _wishes(self, file: str) -> list[str]:
        module = _module(file)
        before, after = self._index.soft.get(module, ([], []))
        return [*before, *after, *self._index.weak.get(module, [])]

    def _load_before(self, file: str) -> list[str]:
        """What modprobe must load before a module, the last one first: that is how modules.dep says it."""
        order: list[str] = []
        seen = {file}

        def visit(one: str) -> None:
            soft = [self._index.files.get(_norm(name)) for name in self._index.soft.get(_module(one), ([], []))[0]]
            for need in [*soft, *reversed(self._index.deps.get(one, ()))]:
                if need is not None and need not in seen:
                    seen.add(need)
                    visit(need)
                    order.append(need)

        visit(file)
        return order[::-1]

    def _firmware_names(self, file: str) -> list[str]:
        return [value for key, value in read_modinfo(self._must(file)) if key == "firmware"]

    def _firmware_files(self, name: str) -> Iterator[Found]:
        for base in (f"usr/lib/firmware/{self.release}", "usr/lib/firmware"):
            folder, _, last = f"{base}/{name}".rpartition("/")
            where = self.tree.resolve(folder)
            names = self.tree.listing(where.path) if where is not None else []
            for suffix in FIRMWARE_SUFFIXES:
                for entry in fnmatch.filter(names, last + suffix):
                    found = self.tree.resolve(f"{folder}/{entry}")
                    if found is not None and found.host.is_file():
                        yield found


def read_modinfo(path: Path) -> list[tuple[str, str]]:
    """The (key, value) pairs of a module's .modinfo section. Raises CapsulekitError when it is no kernel module."""
    try:
        section = ELFFile(io.BytesIO(_unpacked(path))).get_section_by_name(".modinfo")
        data = section.data() if section is not None else b""
    except (ELFError, ValueError, AttributeError) as error:
        raise CapsulekitError(f"{path} is not a kernel module: {error}") from error
    pairs = (os.fsdecode(item).partition("=") for item in data.split(b"\0") if item)
    return [(key, value) for key, _, value in pairs]


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".zst":
                return zstandard.ZstdDecompressor().decompressobj().decompress(data)
            case ".gz":
                return gzip.decompress(data)
    except (lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
        raise CapsulekitError(f"{path} cannot be unpacked: {error}") from error
    return data


def _read_index(folder: Path) -> _Index:
    index = _Index()
    for line in _lines(folder / "modules.dep"):
        file, _, needs = line.partition(":")
        index.deps[file] = tuple(needs.split())
        index.files[_module(file)] = file
    for line in _lines(folder / "modules.alias"):
        pattern, _, module = line.removeprefix("alias ").rpartition(" ")
        # Nearly every pattern starts with fixed text: comparing that first spares thousands of matches.
        norm = _norm(pattern)
        index.aliases.append((WILD.split(norm)[0], norm, _norm(module)))
    for line in _lines(folder / "modules.softdep"):
        _, module, *words = line.split()
        into = index.soft.setdefault(_norm(module), ([], []))
        side = 0  # words before any "pre:" or "post:" are ignored, as modprobe does
        for word in words:
            if word in ("pre:", "post:"):
                side = 1 if word == "pre:" else 2
            elif side:
                into[side - 1].append(word)
    for line in _lines(folder / "modules.weakdep"):
        _, module, *words = line.split()
        index.weak.setdefault(_norm(module), []).extend(words)
    index.builtin = {_module(line) for line in _lines(folder / "modules.builtin")} | set(_builtin_aliases(folder))
    return index


def _builtin_aliases(folder: Path) -> Iterator[str]:
    path = folder / "modules.builtin.modinfo"
    if _is_plain(path):
        for item in path.read_bytes().split(b"\0"):
            key, _, value = os.fsdecode(item).partition("=")
            if key.endswith(".alias"):
                yield _norm(value)


def _is_plain(path: Path) -> bool:
    """A file, not a link to one: depmod never makes links, and one could lead out of the tree."""
    return path.is_file() and not path.is_symlink()


def _lines(path: Path) -> list[str]:
    if not _is_plain(path):
        return []
    text = path.read_text("utf-8", "surrogateescape")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _norm(name: str) -> str:
    """A name as modprobe compares it: "-" and "_" are the same, except inside brackets."""
    return "".join(part if part.startswith("[") else part.replace("-", "_") for part in re.split(r"(\[[^]]*\])", name))


def _plain(file: str) -> str:
    return COMPRESSED.sub("", file)


def _module(file: str) -> str:
    return _norm(_plain(file).rpartition("/")[2].removesuffix(".ko"))
