"""The boot closure of a root: what a node needs to boot and to reach the network, path by path, with the chain.

Run on an unpacked root, of which nothing is started: ``python -m capsulekit.rootfs.closure ROOT OUT.json --init PATH``.
OUT maps paths, spelled as in a merged /usr and without a leading slash, to the chain in words. The purposes are data
(needed.py); what programs load is found by initramfs_builder.elf, what scripts run by their first line, what systemd
runs early in its units.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from initramfs_builder.elf import find_closure
from initramfs_builder.tree import Found, Tree, merged

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.globs import regex
from capsulekit.rootfs.needed import NEEDED, Need

FIRST = "the first program"
# Folders of a running system, empty or covered on a node.
COVERED = frozenset({"dev", "proc", "run", "sys", "tmp"})
UNIT = re.compile(r"(?:usr/lib|etc)/systemd/system/[^/]+\.service")
EARLY = re.compile(r"^\s*DefaultDependencies\s*=\s*(?:no|false|off|0)\s*$", re.IGNORECASE | re.MULTILINE)
# The command of a unit, behind its special prefixes (systemd.service(5), "Command lines").
RUNS = re.compile(r"^\s*Exec(?:StartPre|Start|Condition)\s*=\s*[@:+!|-]*([^\s%]+)", re.MULTILINE)
INTERPRETER = re.compile(rb"#!\s*(/\S+)")


def boot_closure(root: Path, init: str) -> dict[str, str]:
    """Path -> chain for all that the root needs to boot, sorted. Raises CapsulekitError when ``init`` is not there."""
    return _Search(root, init).run()


class _Search:
    def __init__(self, root: Path, init: str) -> None:
        self._tree, self._init = Tree(root), init
        self._chains: dict[str, str] = {}
        # program, as it was asked for -> why; in the order of their importance
        self._programs: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        first = self._tree.resolve(self._init)
        if first is None or not first.host.is_file():
            raise CapsulekitError(f"the root has no {self._init}, which [capsule] init names as its first program")
        self._programs[merged(self._init)] = FIRST
        matches = self._matches()
        for need, path in matches:
            if need.runs:
                self._programs.setdefault(path, need.why)
        for unit in sorted({path for _, path in matches if UNIT.fullmatch(path)}):
            self._add_commands(unit)
        # First what is loaded: its chain says more than the row that names its folder.
        self._load()
        for need, path in matches:
            self._note(path, f"{need.why}: /{path}")
            if need.follow:
                self._follow(path, need.why)
        return dict(sorted(self._chains.items()))

    def _matches(self) -> list[tuple[Need, str]]:
        """Every path of the root that a need names, by need in the table's order, then by path."""
        patterns = [re.compile("|".join(f"(?:{regex(g)})" for g in need.globs), re.DOTALL) for need in NEEDED]
        either = re.compile("|".join(pattern.pattern for pattern in patterns), re.DOTALL)
        found: list[list[str]] = [[] for _ in NEEDED]
        for path in _walk(self._tree.root):
            if either.fullmatch(path):
                for place, pattern in zip(found, patterns, strict=True):
                    if pattern.fullmatch(path):
                        place.append(path)
        return [(need, path) for need, paths in zip(NEEDED, found, strict=True) for path in sorted(paths)]

    def _add_commands(self, unit: str) -> None:
        """The programs of a service that starts before the rest of the system is there."""
        text = self._text(unit)
        if not EARLY.search(text):
            return
        for command in RUNS.findall(text):
            names = [command] if command.startswith("/") else [f"usr/bin/{command}", f"usr/sbin/{command}"]
            for name in names:
                self._programs.setdefault(merged(name), f"systemd starts it early: /{unit}")

    def _load(self) -> None:
        """Add what the programs are, load and are run by, as links and files."""
        starts: dict[str, str] = {}
        todo = list(self._programs.items())
        while todo:
            path, why = todo.pop(0)
            found = self._resolve(path)
            if found is None or not found.host.is_file() or found.path in starts:
                continue
            way = " -> ".join(f"/{step}" for step in dict.fromkeys((path, found.path)))
            starts[found.path] = f"{why}: {way}" if ": " not in why else f"{why} -> {way}"
            if script := INTERPRETER.match(_head(found.host)):
                todo.append((merged(os.fsdecode(script[1])), starts[found.path]))
            self._note_links(found, starts[found.path])
        # The first program by itself: a library that is also on the list is then known by who loads it.
        first, *others = starts
        for programs in ([first], others):
            closure = find_closure(self._tree, programs, strict=False)
            for path, chain in closure.chains.items():
                way = " -> ".join([starts[chain[0]], *(f"/{step}" for step in chain[1:])])
                self._note(path, way)
                self._note_links(closure.files[path], way)

    def _follow(self, path: str, why: str) -> None:
        found = self._resolve(path)
        if found is not None and found.host.is_file():
            self._note(found.path, f"{why}: /{path} -> /{found.path}")
            self._note_links(found, f"{why}: /{path}")

    def _note_links(self, found: Found, way: str) -> None:
        for link in found.links:
            self._note(link, way)

    def _note(self, path: str, way: str) -> None:
        self._chains.setdefault(path, way)

    def _resolve(self, path: str) -> Found | None:
        try:
            return self._tree.resolve(path)
        except CapsulekitError:  # a loop of links leads nowhere on the node too
            return None

    def _text(self, path: str) -> str:
        found = self._resolve(path)
        if found is None or not found.host.is_file():
            return ""
        return found.host.read_text("utf-8", "replace")


def _head(host: Path) -> bytes:
    with host.open("rb") as stream:
        return stream.read(256)


def _walk(root: Path) -> Iterator[str]:
    """Every path of a root but its folders, links not followed, by its merged name."""
    todo = [""]
    while todo:
        folder = todo.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}".lstrip("/")
                if not entry.is_dir(follow_symlinks=False):
                    yield merged(path)
                elif path not in COVERED:
                    todo.append(path)


def main(words: Sequence[str] | None = None) -> int:
    """Write OUT.json; prints an error as one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", default="/sbin/init")
    given = parser.parse_args(words)
    try:
        found = boot_closure(given.root, given.init)
    except CapsulekitError as error:
        sys.stderr.write(f"E: {error}\n")
        return 1
    given.out.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
