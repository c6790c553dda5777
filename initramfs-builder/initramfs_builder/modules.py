"""Kernel modules for an image: which files a list of names needs, and how the image keeps them.

Aliases are matched on the whole name and every hit is kept. Links are followed inside the root only: a tree may come
from anywhere. How a module is kept depends on the image's modprobe: one that unpacks zstd gets every module compressed,
which takes its small size in the node's memory too; a signature is part of the module's bytes and stays.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from initramfs_builder.compress import ZSTD
from initramfs_builder.cpio import Sink, Slice
from initramfs_builder.depmod import COMPRESSED, Index, is_plain, module_of, plain_name, read_index, spelled
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.firmware import Firmware, find_firmware
from initramfs_builder.modulebytes import unpacked
from initramfs_builder.modulefile import read_modinfo
from initramfs_builder.pack import THREADS
from initramfs_builder.patterns import Patterns, is_glob
from initramfs_builder.store import Store
from initramfs_builder.tree import Tree


@dataclass(frozen=True)
class Modprobe:
    """An image's modprobe: kmod's, which reads binary indexes, or busybox's; ``unpacks`` are file name endings."""

    kmod: bool = False
    unpacks: frozenset[str] = frozenset()

    def file_name(self, file: str) -> str:
        """What a module's file is called in the image: as it came if it can be unpacked there, else plain or .zst."""
        suffix = COMPRESSED.search(file)
        if suffix is not None and suffix[0] in self.unpacks:
            return file
        return plain_name(file) + (".zst" if ".zst" in self.unpacks else "")


BUSYBOX = Modprobe()


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
        if not is_plain(self.folder / "modules.dep"):
            raise CapsulekitError(f"{self.folder} has no modules.dep", hint=f"run: depmod -b {root} {release}")
        self.index: Index = read_index(self.folder)
        self._hosts: dict[str, Path | None] = {}
        self._by_plain_name = {plain_name(file): file for file in self.index.deps}

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """Files (as modules.dep names them, sorted) of the named modules and all they need.

        A name is a module, an alias, a glob over module names, or, with a slash in it, a glob over file names
        ("kernel/drivers/net/*"); see Patterns for exceptions. What is built into the kernel needs no file. Soft and
        weak dependencies are taken when they exist. Raises CapsulekitError with the chain when a module or a file is
        missing.
        """
        patterns = Patterns(names)
        taken: dict[str, None] = {}
        todo: list[tuple[str, tuple[str, ...]]] = []
        for name in patterns.wanted:
            hits = self.lookup(name)
            if hits is None:
                raise CapsulekitError(f"kernel {self.release} has no module {name}", hint=f"looked in {self.folder}")
            todo.extend((file, (name,)) for file in hits if not (is_glob(name) and self._left_out(file, patterns)))
        while todo:
            file, chain = todo.pop()
            if file in taken:
                continue
            if self._host(file) is None:
                raise CapsulekitError(f"{self.folder / file} is missing: wanted by {', wanted by '.join(chain[::-1])}")
            taken[file] = None
            todo.extend((dep, (*chain, file)) for dep in self.index.deps.get(file, ()))
            wishes = (hit for name in self._wishes(file) for hit in self.lookup(name) or ())
            todo.extend((hit, (*chain, file)) for hit in wishes if not self._left_out(hit, patterns))
        return tuple(sorted(taken))

    def idle_exceptions(self, names: Iterable[str]) -> tuple[str, ...]:
        """The "!GLOB" of a list that match no module of this kernel: likely a slip of the pen."""
        every = [*self._by_plain_name, *self.index.files]
        return tuple(f"!{one}" for one in Patterns(names).unwanted if not fnmatch.filter(every, one))

    def lookup(self, name: str) -> list[str] | None:
        """Files for a module name, glob or alias; empty when it is built in, None when nobody knows it."""
        if "/" in name:
            return [self._by_plain_name[hit] for hit in fnmatch.filter(self._by_plain_name, name)] or None
        norm = spelled(name)
        if norm in self.index.files:
            return [self.index.files[norm]]
        if norm in self.index.builtin:
            return []
        hits = self.index.by_alias(norm) or set(fnmatch.filter(self.index.files, norm))
        return [self.index.files[hit] for hit in sorted(hits) if hit in self.index.files] if hits else None

    def contents(self, file: str, kept_as: str, store: Store, level: int) -> bytes | Path | Slice:
        """A module's bytes for a file of the name ``kept_as`` (see Modprobe), compressed at a zstd ``level``."""
        path = self._must(file)
        if kept_as == file:
            return path
        plain = unpacked(path.read_bytes(), str(path))
        if kept_as == plain_name(file):
            return plain
        made_of = hashlib.sha256(f"module {ZSTD.identity(level)} ".encode())
        made_of.update(plain)

        def compress(out: Sink) -> None:
            with ZSTD.stream(out, level, len(plain)) as stream:
                stream.write(plain)

        key = made_of.hexdigest()
        return store.get(key) or store.make(key, compress)

    def all_contents(
        self, files: Sequence[str], modprobe: Modprobe, store: Store, level: int
    ) -> list[tuple[str, bytes | Path | Slice]]:
        """(path in the image, content) of modules, several at a time."""

        def one(file: str) -> tuple[str, bytes | Path | Slice]:
            kept_as = modprobe.file_name(file)
            return f"usr/lib/modules/{self.release}/{kept_as}", self.contents(file, kept_as, store, level)

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(one, files))

    def firmware(
        self,
        files: Iterable[str],
        builtin: Iterable[str] = (),
        patterns: Patterns | None = None,
        beside: Iterable[Tree] = (),
    ) -> Firmware:
        """Firmware that the modules, and those ``builtin``, name; looked up in this tree and those ``beside`` it."""
        named = [(module_of(file), value) for file in files for value in self._firmware_of(file)]
        inside = set(builtin)
        named += [(module, value) for module, value in self.index.builtin_values("firmware") if module in inside]
        return find_firmware((self.tree, *beside), self.release, named, patterns)

    def builtin(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the named modules are built into the kernel."""
        return tuple(name for name in map(spelled, Patterns(names).wanted) if name in self.index.builtin)

    def load_before(self, file: str) -> list[str]:
        """What modprobe must load before a module, the last one first: that is how modules.dep says it."""
        order: list[str] = []
        seen = {file}

        def visit(one: str) -> None:
            soft = [self.index.files.get(spelled(name)) for name in self.index.soft.get(module_of(one), ([], []))[0]]
            for need in [*soft, *reversed(self.index.deps.get(one, ()))]:
                if need is not None and need not in seen:
                    seen.add(need)
                    visit(need)
                    order.append(need)

        visit(file)
        return order[::-1]

    def _left_out(self, file: str, patterns: Patterns) -> bool:
        return patterns.leaves_out(plain_name(file)) or patterns.leaves_out(module_of(file))

    def _firmware_of(self, file: str) -> list[str]:
        return [value for key, value in read_modinfo(self._must(file)) if key == "firmware"]

    def _host(self, file: str) -> Path | None:
        """Where a file that modules.dep names lies, or None."""
        if file not in self._hosts:
            found = self.tree.resolve(f"usr/lib/modules/{self.release}/{file}")
            self._hosts[file] = found.host if found is not None and found.host.is_file() else None
        return self._hosts[file]

    def _must(self, file: str) -> Path:
        host = self._host(file)
        if host is None:
            raise CapsulekitError(f"{self.folder / file} is missing")
        return host

    def _wishes(self, file: str) -> list[str]:
        module = module_of(file)
        before, after = self.index.soft.get(module, ([], []))
        return [*before, *after, *self.index.weak.get(module, [])]
