"""The kernel modules of a finished image: its indexes, read as modprobe reads them, and which devices they drive.

The indexes are depmod's text files (modules.dep(5)); what is built into the kernel is in modules.builtin, and its
aliases in modules.builtin.modinfo. An alias is matched on the whole name and every hit is kept.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from initramfs_builder.depmod import module_of, plain_name, spelled
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.image import Fact, Image, read_facts
from initramfs_builder.patterns import WILD, is_glob

FIRMWARE_SUFFIXES = ("", ".zst", ".xz")  # the kernel adds them by itself (CONFIG_FW_LOADER_COMPRESS)


@dataclass(frozen=True)
class Driver:
    """A module that says it drives a device.

    ``builtin``: part of the kernel; ``present``: its file is in the image with all it depends on. ``firmware_missing``
    are files that it or a module it depends on names and the image does not have.
    """

    module: str
    builtin: bool
    present: bool
    firmware_missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cover:
    """One device's modalias and every driver for it, sorted by name."""

    modalias: str
    drivers: tuple[Driver, ...]

    @property
    def driven(self) -> bool:
        """Whether some driver is there."""
        return any(driver.builtin or driver.present for driver in self.drivers)

    @property
    def firmware_missing(self) -> tuple[str, ...]:
        """The firmware that all drivers together lack."""
        return tuple(sorted({name for driver in self.drivers for name in driver.firmware_missing}))


def covers(image: Path | Image, modaliases: Iterable[str]) -> list[Cover]:
    """Which modules of an image drive each of these devices, in the order given.

    Raises TrustError when the image is damaged, CapsulekitError when it holds no modules of exactly one kernel.
    """
    index = module_index(image if isinstance(image, Image) else read_facts(image))
    return [Cover(modalias, tuple(_driver(index, name) for name in index.matches(modalias))) for modalias in modaliases]


def _driver(index: ModuleIndex, name: str) -> Driver:
    if name not in index.files:
        return Driver(name, True, False)
    files = [index.files[name], *index.deps[index.files[name]]]
    present = all(index.fact(file) is not None for file in files)
    missing = {firmware for file in files for firmware in index.firmware_of(file) if not index.firmware(firmware)}
    return Driver(name, False, present, tuple(sorted(missing)))


@dataclass
class ModuleIndex:
    """modprobe's view of an image: ``folder`` is where the modules of ``release`` lie, files are named from there.

    ``deps``: file → files it needs. ``files``: module → file. ``soft``: module → the modules wanted with it.
    ``builtin``: modules of the kernel itself, ``builtin_files`` as depmod names them, ``builtin_firmware`` by module.
    ``alias_pairs``: (pattern, module) of what is not built in.
    """

    image: Image
    folder: str
    release: str
    deps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    soft: dict[str, tuple[str, ...]] = field(default_factory=dict)
    builtin: set[str] = field(default_factory=set)
    builtin_files: list[str] = field(default_factory=list)
    builtin_firmware: dict[str, list[str]] = field(default_factory=dict)
    alias_pairs: set[tuple[str, str]] = field(default_factory=set)
    _aliases: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    _lengths: tuple[int, ...] = ()
    _firmware: dict[str, list[str]] = field(default_factory=dict)

    def fact(self, file: str) -> Fact | None:
        """The facts of a module's file, if it is in the image."""
        return self.image.file(f"{self.folder}/{file}")

    def matches(self, alias: str) -> list[str]:
        """Every module, built in or not, whose name or alias fits; sorted."""
        name = spelled(alias)
        hits = {name} & (self.files.keys() | self.builtin)
        # Only patterns whose fixed start the name has: a handful of thousands.
        for length in self._lengths:
            for pattern, module in self._aliases.get(name[:length], ()):
                if module not in hits and _regex(pattern).fullmatch(name):
                    hits.add(module)
        return sorted(hits)

    def named(self, name: str) -> list[str] | None:
        """Files for a name as a recipe says it (module, alias, glob); empty when built in, None when nobody has it."""
        norm = spelled(name)
        if "/" in name:
            built = any(fnmatch.fnmatchcase(file, name) for file in self.builtin_files)
            return [f for f in self.deps if fnmatch.fnmatchcase(plain_name(f), name)] or ([] if built else None)
        if norm in self.files:
            return [self.files[norm]]
        hits = set(self.matches(name)) | set(fnmatch.filter({*self.files, *self.builtin}, norm))
        return sorted(self.files[hit] for hit in hits if hit in self.files) if hits else None

    def firmware_of(self, file: str) -> tuple[str, ...]:
        """The firmware that a module's file names."""
        fact = self.fact(file)
        return fact.module.firmware if fact is not None and fact.module is not None else ()

    def firmware(self, name: str) -> bool:
        """Whether the image has a firmware file of this name (or glob), compressed or not, where the kernel looks."""
        folders = (f"lib/firmware/{self.release}", "lib/firmware")
        if not is_glob(name):
            return any(self.image.file(f"{f}/{name}{suffix}") for f in folders for suffix in FIRMWARE_SUFFIXES)
        wanted = [name + suffix for suffix in FIRMWARE_SUFFIXES]
        return any(fnmatch.filter(self._firmware_in(folder), one) for folder in folders for one in wanted)

    def _firmware_in(self, folder: str) -> list[str]:
        """Every file below a folder, named from there."""
        if folder not in self._firmware:
            real = self.image.resolve(folder)
            found = self.image.below(folder) if real is not None else ()
            self._firmware[folder] = [path[len(real or "") + 1 :] for path, _ in found if self.image.file(path)]
        return self._firmware[folder]

    def add_alias(self, pattern: str, module: str) -> None:
        """Note that a module is wanted by every name that fits the pattern."""
        pattern = spelled(pattern)
        self._aliases.setdefault(WILD.split(pattern)[0], []).append((pattern, module))

    def close(self) -> ModuleIndex:
        """After the last alias."""
        self._lengths = tuple(sorted({len(start) for start in self._aliases}))
        return self


def module_index(image: Image) -> ModuleIndex:
    """Read the indexes of an image. Raises CapsulekitError when it holds no modules of exactly one kernel."""
    base = image.resolve("lib/modules")
    releases = sorted({path[len(base) + 1 :].split("/")[0] for path, _ in image.below("lib/modules")}) if base else []
    if len(releases) != 1:
        what = "no kernel's modules" if not releases else "the modules of several kernels: " + ", ".join(releases)
        raise CapsulekitError(f"{image.name} holds {what}", hint="an image is made for exactly one kernel")
    index = ModuleIndex(image, f"{base}/{releases[0]}", releases[0])
    for line in _lines(index, "dep"):
        file, _, needs = line.partition(":")
        index.deps[file] = tuple(needs.split())
        index.files[module_of(file)] = file
    index.builtin_files = _lines(index, "builtin")
    index.builtin = {module_of(file) for file in index.builtin_files}
    for line in _lines(index, "softdep"):
        _, module, *words = [*line.split(), "", ""]
        side = next((at for at, word in enumerate(words) if word in ("pre:", "post:")), len(words))
        wanted = tuple(word for word in words[side:] if word not in ("", "pre:", "post:"))
        index.soft[spelled(module)] = (*index.soft.get(spelled(module), ()), *wanted)
    _read_aliases(index)
    return index.close()


def _read_aliases(index: ModuleIndex) -> None:
    for line in _lines(index, "alias"):
        words = line.split()
        if len(words) == 3 and spelled(words[2]) in index.files:
            index.alias_pairs.add((spelled(words[1]), spelled(words[2])))
            index.add_alias(words[1], spelled(words[2]))
    modinfo = index.image.file(f"{index.folder}/modules.builtin.modinfo")
    for item in (modinfo.text if modinfo is not None else "").split("\0"):
        key, _, value = item.partition("=")
        module, _, what = key.partition(".")
        if not module or not value:
            continue
        if what == "alias":
            index.add_alias(value, spelled(module))
        elif what == "firmware":
            index.builtin_firmware.setdefault(spelled(module), []).append(value)


def _lines(index: ModuleIndex, name: str) -> list[str]:
    fact = index.image.file(f"{index.folder}/modules.{name}")
    text = fact.text if fact is not None else ""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


@lru_cache(maxsize=1 << 16)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
