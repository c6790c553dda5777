"""depmod's text files of one kernel release, read into tables (depmod(8), modules.dep(5)).

Only plain files are read: depmod makes no links, and one could lead out of the tree.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from initramfs_builder.patterns import WILD

COMPRESSED = re.compile(r"\.(xz|zst|gz)$")
BUCKET = 3  # characters of a pattern's fixed start by which aliases are found again


@dataclass
class Index:
    """What depmod found, names with "_" for "-"."""

    deps: dict[str, tuple[str, ...]] = field(default_factory=dict)  # file → files it needs, last one loaded first
    files: dict[str, str] = field(default_factory=dict)  # module → file
    soft: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)  # module → wanted before, after
    weak: dict[str, list[str]] = field(default_factory=dict)
    builtin: set[str] = field(default_factory=set)
    builtin_info: list[tuple[str, str, str]] = field(default_factory=list)  # module, key, value
    # First characters → (pattern, module); a pattern whose fixed start is shorter lies under that.
    aliases: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def by_alias(self, name: str) -> set[str]:
        """Every module with an alias that matches a whole name, which is spelled with "_"."""
        return {
            module
            for bucket in {name[:length] for length in range(BUCKET + 1)}
            for pattern, module in self.aliases.get(bucket, ())
            # Comparing the fixed start first spares thousands of matches.
            if name.startswith(WILD.split(pattern, maxsplit=1)[0]) and fnmatchcase(name, pattern)
        }

    def builtin_values(self, key: str) -> Iterator[tuple[str, str]]:
        """(module, value) of a .modinfo key of what is built into the kernel."""
        return ((module, value) for module, its, value in self.builtin_info if its == key)


def read_index(folder: Path) -> Index:
    """The tables of the release whose modules lie in ``folder``; what depmod did not write is empty."""
    index = Index()
    for line in text_lines(folder / "modules.dep"):
        file, _, needs = line.partition(":")
        index.deps[file] = tuple(needs.split())
        index.files[module_of(file)] = file
    for line in text_lines(folder / "modules.alias"):
        pattern, _, module = line.removeprefix("alias ").rpartition(" ")
        _add_alias(index, pattern, module)
    for line in text_lines(folder / "modules.softdep", 2):
        _, module, *words = line.split()
        into = index.soft.setdefault(spelled(module), ([], []))
        side = 0  # words before any "pre:" or "post:" are ignored, as modprobe does
        for word in words:
            if word in ("pre:", "post:"):
                side = 1 if word == "pre:" else 2
            elif side:
                into[side - 1].append(word)
    for line in text_lines(folder / "modules.weakdep", 2):
        _, module, *words = line.split()
        index.weak.setdefault(spelled(module), []).extend(words)
    index.builtin = {module_of(line) for line in text_lines(folder / "modules.builtin")}
    index.builtin_info = list(_builtin_info(folder / "modules.builtin.modinfo"))
    for module, alias in index.builtin_values("alias"):
        _add_alias(index, alias, module)
    return index


def _add_alias(index: Index, pattern: str, module: str) -> None:
    norm = spelled(pattern)
    bucket = norm[:BUCKET]
    if not bucket.isalnum() and (wild := WILD.search(bucket)):
        bucket = bucket[: wild.start()]
    index.aliases[bucket].append((norm, spelled(module)))


def _builtin_info(path: Path) -> Iterator[tuple[str, str, str]]:
    if is_plain(path):
        for item in path.read_bytes().split(b"\0"):
            key, equals, value = os.fsdecode(item).partition("=")
            module, _, key = key.partition(".")
            if equals:
                yield spelled(module), key, value


def is_plain(path: Path) -> bool:
    """A file, not a link to one."""
    return path.is_file() and not path.is_symlink()


def text_lines(path: Path, least: int = 1) -> list[str]:
    """The lines of one of depmod's files, comments left out, and those of fewer words than ``least``, as modprobe does.

    None when it is not there.
    """
    if not is_plain(path):
        return []
    text = path.read_text("utf-8", "surrogateescape")
    return [line for line in text.splitlines() if len(line.split()) >= least and not line.startswith("#")]


def spelled(name: str) -> str:
    """A name as modprobe compares it: "-" and "_" are the same, except inside brackets."""
    if "[" not in name:
        return name.replace("-", "_")
    return "".join(part if part.startswith("[") else part.replace("-", "_") for part in re.split(r"(\[[^]]*\])", name))


def plain_name(file: str) -> str:
    """A module's file name without what says how it is compressed."""
    return COMPRESSED.sub("", file)


def module_of(file: str) -> str:
    """The module that a file holds."""
    return spelled(plain_name(file).rpartition("/")[2].removesuffix(".ko"))
