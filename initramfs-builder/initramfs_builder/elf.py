"""Which files a program needs to run: an ELF closure, read from the files themselves.

Never ``ldd``: it runs the program, and answers for the machine it runs on. The search is ld.so(8)'s, inside a root
folder: DT_RPATH of the file and its loaders, DT_RUNPATH, the loader's own folders, then ld.so.conf; only files of the
same class and machine count. Libraries that programs load by name while running are taken from ``.note.dlopen``
(https://systemd.io/ELF_DLOPEN_METADATA/) and, for those that carry no such note, from a table (loaded.py).
"""

from __future__ import annotations

import fnmatch
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from initramfs_builder.elffile import DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, MAGIC, ElfFile, name_at
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.loaded import ALWAYS, Loaded
from initramfs_builder.tree import Found, Tree, merged

MULTIARCH = {
    "EM_X86_64": "x86_64-linux-gnu",
    "EM_386": "i386-linux-gnu",
    "EM_AARCH64": "aarch64-linux-gnu",
    "EM_ARM": "arm-linux-gnueabihf",
    "EM_PPC64": "powerpc64le-linux-gnu",
    "EM_RISCV": "riscv64-linux-gnu",
    "EM_S390": "s390x-linux-gnu",
}
NOTE_DLOPEN = 0x407C0C0A
NOTE_OWNER = b"FDO\0"


@dataclass(frozen=True)
class Dlopen:
    """One library wanted at run time: alternatives by file name, best first."""

    sonames: tuple[str, ...]
    required: bool


@dataclass(frozen=True)
class Elf:
    """What the loader reads from a file."""

    kind: tuple[int, str]  # class in bits, machine
    interpreter: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    dlopen: tuple[Dlopen, ...] = ()
    soname: str | None = None
    names: bytes = field(default=b"", repr=False)  # of a program: its table of dynamic names, each between two NUL


@dataclass
class Closure:
    """The answer: ``paths`` in the root (files and the links that lead to them, merged names, sorted), and ``links``.

    ``links`` (path → target) must be made in the image: it has no ld.so.cache, so what only ld.so.conf finds gets a
    link beside the loader. ``chains`` says for every file who wanted it: the program asked for first, the file last.
    """

    files: dict[str, Found] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path of the root in the closure."""
        return tuple(sorted({*self.files, *(link for found in self.files.values() for link in found.links)}))


@dataclass(frozen=True)
class _Wanted:
    """A file on the way: its chain starts with the program asked for."""

    found: Found
    elf: Elf
    chain: tuple[str, ...]
    rpath: tuple[str, ...]  # of everything above, but of what has a RUNPATH
    loader_dir: str
    at: str  # the name it was opened by: $ORIGIN is the folder of that, not of what a link there leads to


def closure(root: Path, starts: Sequence[str]) -> tuple[str, ...]:
    """Paths in ``root`` that the programs ``starts`` need, themselves included; see Closure and find_closure."""
    return find_closure(Tree(root), starts).paths


def find_closure(
    tree: Tree, starts: Iterable[str], *, strict: bool = True, loaded: Sequence[Loaded] = ALWAYS
) -> Closure:
    """Walk from the programs to all they load. A file that is not ELF (a script) stands for itself.

    ``loaded`` is the table of what they load by name. Raises CapsulekitError naming the chain (who wanted whom) when
    something is missing or cannot be read; not ``strict``, what is missing or damaged is left out (an installed root
    may hold plugins that nobody can load).
    """
    return _Walk(tree, strict, loaded).run(starts)


class _Walk:
    def __init__(self, tree: Tree, strict: bool, loaded: Sequence[Loaded]) -> None:
        self.tree, self.strict, self.loaded = tree, strict, loaded
        self.result = Closure()
        self.conf_dirs = tuple(_ld_so_conf(tree, "etc/ld.so.conf"))
        self._read: dict[Path, Elf | None] = {}

    def run(self, starts: Iterable[str]) -> Closure:
        todo = [wanted for start in starts if (wanted := self._start(start)) is not None]
        while todo:
            todo.extend(self._expand(todo.pop(0)))
        return self.result

    def _start(self, path: str) -> _Wanted | None:
        found = self.tree.resolve(path)
        if found is None or not found.host.is_file():
            raise CapsulekitError(f"{path} is not in {self.tree.root}", hint="is its package in the recipe?")
        self._take(found, (found.path,))
        elf = self._elf(found.host)
        if elf is None:
            return None
        chain = (found.path,)
        loader_dir = f"usr/lib/{MULTIARCH.get(elf.kind[1], '')}".rstrip("/")
        if elf.interpreter is not None:
            loader = self.tree.resolve(elf.interpreter)
            if loader is not None:
                self._take(loader, (*chain, loader.path))
                loader_dir = os.path.dirname(loader.path)  # noqa: PTH120
            elif self.strict:
                raise self._missing(elf.interpreter, chain)
        return _Wanted(found, elf, chain, (), loader_dir, found.path)

    def _expand(self, wanted: _Wanted) -> Iterator[_Wanted]:
        for soname in wanted.elf.needed:
            yield from self._library(wanted, soname, required=True)
            for row in self.loaded:
                if row.by == soname and _calls(wanted, row.calling):
                    yield from self._by_name(wanted, row.names)
        for note in wanted.elf.dlopen:
            have = next((name for name in note.sonames if self._search(wanted, name)), None)
            if have is None and note.required and self.strict:
                raise self._missing(" or ".join(note.sonames), wanted.chain)
            if have is not None:
                yield from self._library(wanted, have, required=True)

    def _by_name(self, wanted: _Wanted, names: Iterable[str]) -> Iterator[_Wanted]:
        for name in names:
            where, _, last = name.rpartition("/")
            if not where:
                yield from self._library(wanted, name, required=False)
                continue
            for folder in (f"{base}/{where}" for base in self._library_folders(wanted)):
                for entry in fnmatch.filter(self.tree.listing(folder), last):
                    found = self.tree.resolve(f"{folder}/{entry}")
                    if found is None or not found.host.is_file():
                        continue
                    if self._elf(found.host) is None:
                        self._take(found, (*wanted.chain, found.path))
                    else:
                        yield from self._library(wanted, f"{folder}/{entry}", required=False)

    def _library(self, wanted: _Wanted, soname: str, *, required: bool) -> Iterator[_Wanted]:
        hit = self._search(wanted, soname)
        if hit is None:
            if required and self.strict:
                raise self._missing(soname, wanted.chain)
            return
        found, elf, link, at = hit
        if link is not None:
            self.result.links[link[0]] = link[1]
        chain = (*wanted.chain, found.path)
        if self._take(found, chain):
            # A RUNPATH hides its own file's RPATH from what that file loads, not the RPATH of those above.
            own = () if wanted.elf.runpath else _origin(wanted.elf.rpath, wanted.at)
            yield _Wanted(found, elf, chain, (*own, *wanted.rpath), wanted.loader_dir, at)

    def _search(self, wanted: _Wanted, soname: str) -> tuple[Found, Elf, tuple[str, str] | None, str] | None:
        """The file for a name, what it says, the link it needs beside the loader when only ld.so.conf finds it, and the
        name by which the image's loader opens it.
        """
        own = (*_origin(wanted.elf.runpath, wanted.at),)
        if not wanted.elf.runpath:
            own = (*_origin(wanted.elf.rpath, wanted.at), *wanted.rpath)
        builtin = self._library_folders(wanted)
        configured = (*self.conf_dirs, "usr/lib64")
        names = [soname] if "/" in soname else [f"{folder}/{soname}" for folder in (*own, *builtin, *configured)]
        for number, name in enumerate(names):
            found = self.tree.resolve(name)
            if found is None or not found.host.is_file():
                continue
            elf = self._elf(found.host)
            if elf is None or elf.kind != wanted.elf.kind:
                continue
            link = None
            if number >= len(own) + len(builtin):
                link = (f"{wanted.loader_dir}/{soname}", os.path.relpath("/" + found.path, "/" + wanted.loader_dir))
            return found, elf, link, link[0] if link else name.lstrip("/")
        return None

    @staticmethod
    def _library_folders(wanted: _Wanted) -> tuple[str, ...]:
        """The loader's own folders, each once."""
        multiarch = f"usr/lib/{MULTIARCH.get(wanted.elf.kind[1], '')}".rstrip("/")
        return tuple(dict.fromkeys((wanted.loader_dir, multiarch, "usr/lib")))

    def _take(self, found: Found, chain: tuple[str, ...]) -> bool:
        """Note a file and the links to it; whether the file is new."""
        known = self.result.files.get(found.path)
        links = {**(known.links if known else {}), **found.links}
        self.result.files[found.path] = Found(found.path, found.host, links)
        self.result.chains.setdefault(found.path, chain)
        return known is None

    def _elf(self, host: Path) -> Elf | None:
        if host not in self._read:
            try:
                self._read[host] = read_elf(host)
            except CapsulekitError:
                if self.strict:
                    raise
                self._read[host] = None
        return self._read[host]

    def _missing(self, name: str, chain: tuple[str, ...]) -> CapsulekitError:
        wanted_by = ", wanted by ".join(reversed(chain))
        return CapsulekitError(
            f"{name} is not in {self.tree.root}: wanted by {wanted_by}",
            hint="add the package that holds it to the recipe",
        )


def _calls(wanted: _Wanted, function: str | None) -> bool:
    """Whether it is a program (a library's callers may never come there) that calls a function, when one is named."""
    return function is None or (len(wanted.chain) == 1 and f"\0{function}\0".encode() in wanted.elf.names)


def read_elf(path: Path) -> Elf | None:
    """Read a file's dynamic section and notes; None when it is not ELF. Raises CapsulekitError when it is damaged."""
    with path.open("rb") as stream:
        return parse_elf(stream, str(path))


def parse_elf(stream: BinaryIO, name: str) -> Elf | None:
    """The same for an open file, whose ``name`` errors say."""
    if stream.read(4) != MAGIC:
        return None
    try:
        return _read_segments(ElfFile(stream))
    except (struct.error, ValueError, OverflowError) as error:
        raise CapsulekitError(f"{name} is a damaged ELF file: {error}") from error


def _read_segments(elf: ElfFile) -> Elf:
    tags, names = elf.dynamic()

    def named(tag: int) -> list[str]:
        return [name_at(names, offset) for offset in tags.get(tag, ())]

    def folders(tag: int) -> tuple[str, ...]:
        return tuple(folder for value in named(tag) for folder in value.split(":") if folder)

    notes = [note for data, align in elf.notes() for note in _dlopen_notes(data, align, elf.order)]
    interpreter = elf.interpreter
    return Elf(
        (elf.bits, elf.machine),
        interpreter,
        tuple(named(DT_NEEDED)),
        folders(DT_RPATH),
        folders(DT_RUNPATH),
        tuple(notes),
        next(iter(named(DT_SONAME)), None),
        names if interpreter is not None else b"",
    )


def _dlopen_notes(data: bytes, align: int, order: str) -> Iterator[Dlopen]:
    """Libraries asked for by dlopen notes; those only suggested are left out."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from(order + "III", data, at)
        name_at = at + 12
        data_at = name_at + -(-name_size // align) * align
        if kind == NOTE_DLOPEN and data[name_at : name_at + name_size] == NOTE_OWNER:
            yield from _wishes(data[data_at : data_at + size].rstrip(b"\0"))
        at = data_at + -(-size // align) * align


def _wishes(told: bytes) -> Iterator[Dlopen]:
    """What one note asks for; raises ValueError when it is not as the format wants it."""
    try:
        items = json.loads(told)
    except RecursionError:
        raise ValueError("a dlopen note is too deep") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("a dlopen note is no list of wishes")
    for item in items:
        names = item.get("soname")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("a dlopen note has no list of names")
        priority = item.get("priority", "recommended")
        if priority in ("required", "recommended"):
            yield Dlopen(tuple(names), priority == "required")


def _origin(folders: Iterable[str], path: str) -> tuple[str, ...]:
    here = "/" + os.path.dirname(path)  # noqa: PTH120
    expanded = []
    for folder in folders:
        for word in ("$ORIGIN", "${ORIGIN}"):
            folder = folder.replace(word, here)
        for word in ("$LIB", "${LIB}"):
            folder = folder.replace(word, "lib")
        expanded.append(folder)
    return tuple(expanded)


def _ld_so_conf(tree: Tree, path: str, depth: int = 0) -> Iterator[str]:
    """Folders named by a configuration of ldconfig(8), files it includes read in place."""
    found = tree.resolve(path)
    if found is None or not found.host.is_file() or depth > 8:
        return
    for line in found.host.read_text("utf-8", "surrogateescape").splitlines():
        words = line.partition("#")[0].replace(",", " ").replace(":", " ").split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                # Relative patterns are taken from the folder of the file that includes them.
                where, _, name = (
                    pattern if pattern.startswith("/") else f"{path.rpartition('/')[0]}/{pattern}"
                ).rpartition("/")
                for entry in fnmatch.filter(tree.listing(where), name):
                    yield from _ld_so_conf(tree, f"{where}/{entry}", depth + 1)
        elif words[:1] != ["hwcap"]:
            yield from (merged(word) for word in words)
