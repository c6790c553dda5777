"""Firmware for an image's modules: what they name (globs allowed), where it lies, and what is not there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from initramfs_builder.errors import CapsulekitError
from initramfs_builder.patterns import Patterns
from initramfs_builder.tree import Found, Tree

COMPRESSED = re.compile(r"\.(zst|xz)$")  # the kernel's loader adds it by itself (CONFIG_FW_LOADER_COMPRESS)


@dataclass(frozen=True)
class Firmware:
    """Files found in the trees, and (module, name) of what they do not have or the recipe left out."""

    found: tuple[Found, ...]
    missing: tuple[tuple[str, str], ...]


def find_firmware(
    trees: Sequence[Tree], release: str, named: Iterable[tuple[str, str]], patterns: Patterns | None = None
) -> Firmware:
    """The firmware that modules name, and what the recipe wants beside it; ``named`` is (module, name or glob).

    Each name is looked up in the trees' lib/firmware, that of the kernel's ``release`` first; the first tree that has
    it counts. Raises CapsulekitError when the recipe wants a file that no tree has.
    """
    patterns = patterns or Patterns(())
    found: list[Found] = []  # one file may be here twice, led to by different links
    missing: list[tuple[str, str]] = []
    by_name: dict[str, list[str]] = {}
    for module, name in named:
        by_name.setdefault(name, []).append(module)
    for name in sorted({*by_name, *patterns.wanted}):
        asked = name in patterns.wanted
        hits = list(_files(trees, release, name, None if asked else patterns))
        found.extend(hits)
        if not hits and asked:
            raise CapsulekitError(
                f"the firmware {name} is in none of the packages", hint="is the package that holds it in the recipe?"
            )
        if not hits:
            missing.extend((module, name) for module in by_name[name])
    return Firmware(tuple(found), tuple(sorted(set(missing))))


def _files(trees: Sequence[Tree], release: str, name: str, patterns: Patterns | None) -> Iterator[Found]:
    for tree in trees:
        hits = [hit for base in _bases(release) for hit in _below(tree, base, name, patterns)]
        if hits:
            yield from hits
            return


def _bases(release: str) -> tuple[str, str]:
    return f"usr/lib/firmware/{release}", "usr/lib/firmware"


def _below(tree: Tree, base: str, name: str, patterns: Patterns | None) -> Iterator[Found]:
    where, _, last = name.rpartition("/")
    folder = tree.resolve(f"{base}/{where}")
    if folder is None:
        return
    for entry in tree.listing(folder.path):
        plain = COMPRESSED.sub("", entry)
        if not (fnmatch.fnmatchcase(entry, last) or fnmatch.fnmatchcase(plain, last)):
            continue
        if patterns is not None and patterns.leaves_out(f"{where}/{plain}".lstrip("/")):
            continue
        found = tree.resolve(f"{base}/{where}/{entry}")
        if found is not None and found.host.is_file():
            yield found
