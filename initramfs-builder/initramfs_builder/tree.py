"""An extracted package tree, read as if it were an installed, merged-/usr system.

Debian 12 packages hold both /lib/… and /usr/lib/… as real folders; installed, /lib is a link to usr/lib. Here every
path is looked up under both names and spoken of by its merged one (usr/lib/…), relative to the root. Symbolic links
are followed inside the root only, whatever they say.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from initramfs_builder.errors import CapsulekitError

MERGED = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32"})
WILD = re.compile(r"[*?[]")
LINK_LIMIT = 40  # the kernel's own limit of links in one look-up


@dataclass(frozen=True)
class Found:
    """A look-up's end: merged ``path`` in the root, where it lies on this ``host``, and the links passed on the way.

    ``links`` maps the merged path of each link to its target, relative to the link's folder.
    """

    path: str
    host: Path
    links: dict[str, str] = field(default_factory=dict)


def merged(path: str) -> str:
    """The path by its merged-/usr name, without leading or doubled slashes: /lib/x → usr/lib/x."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[0] in MERGED:
        parts.insert(0, "usr")
    return "/".join(parts)


class Tree:
    """Look-ups in a root folder, which nobody changes meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._top = str(self.root).rstrip("/")
        self._spelled: dict[tuple[str, ...], tuple[list[str], str | None] | None] = {}
        self._listed: dict[str, list[str]] = {}

    def resolve(self, path: str) -> Found | None:
        """Follow a path to a file or folder; None when it does not exist. Raises CapsulekitError on a link loop."""
        todo = path.split("/")
        done: list[str] = []  # as it lies on disk, free of links
        links: dict[str, str] = {}
        hops = 0
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            step = self._on_disk((*done, part))
            if step is None:
                return None
            here, target = step
            if target is None:
                done = here
                continue
            hops += 1
            if hops > LINK_LIMIT:
                raise CapsulekitError(f"{path} in {self.root} is a loop of symbolic links")
            done = [] if target.startswith("/") else here[:-1]
            self._note_link(links, here, [*done, *target.split("/")])
            todo = target.split("/") + todo
        host = self.root.joinpath(*done)
        return Found(merged("/".join(done)), host, links) if host.exists() else None

    def listing(self, path: str) -> list[str]:
        """Sorted names in a folder, under both of its names; empty when it does not exist."""
        known = self._listed.get(path)
        if known is None:
            names: set[str] = set()
            for parts in self._spellings(tuple(merged(path).split("/"))):
                host = "/".join((self._top, *parts))
                if os.path.isdir(host) and os.path.realpath(host) == host:  # noqa: PTH112
                    names.update(os.listdir(host))  # noqa: PTH208
            known = self._listed[path] = sorted(names)
        return known

    def glob(self, pattern: str) -> Iterator[str]:
        """Merged paths that a glob matches, sorted; a star matches across "/". Links to folders are not entered."""
        start = merged("/".join(takewhile(lambda part: not WILD.search(part), pattern.split("/"))))
        matches = re.compile(fnmatch.translate(merged(pattern))).match
        todo = [start]
        while todo:
            folder = todo.pop()
            for name in sorted(self.listing(folder) if folder else self._names(), reverse=True):
                path = f"{folder}/{name}".lstrip("/")
                if matches(path):
                    yield path
                found = self.resolve(path)
                if found is not None and found.path == path and found.host.is_dir():
                    todo.append(path)

    def _names(self) -> list[str]:
        return sorted({"usr" if name in MERGED else name for name in os.listdir(self.root)})  # noqa: PTH208

    def _on_disk(self, parts: tuple[str, ...]) -> tuple[list[str], str | None] | None:
        """Where a path with no link above its last part lies, and what it says if that is a link; kept."""
        if parts not in self._spelled:
            self._spelled[parts] = self._look(parts)
        return self._spelled[parts]

    def _look(self, parts: tuple[str, ...]) -> tuple[list[str], str | None] | None:
        if parts == ("usr",):
            return ["usr"], None  # a tree with nothing but /lib still has what is looked for in usr/lib
        top = self._top
        for spelling in self._spellings(parts):
            above, host = "/".join((top, *spelling[:-1])), "/".join((top, *spelling))
            # Plain text in place of Path, here and above: thousands of look-ups are half of an assembly's time.
            if os.path.lexists(host) and (above == top or os.path.realpath(above) == above):
                return list(spelling), os.readlink(host) if os.path.islink(host) else None  # noqa: PTH114, PTH115
        return None

    @staticmethod
    def _spellings(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
        if parts[0] in MERGED:
            return [parts, ("usr", *parts)]
        if parts[0] == "usr" and len(parts) > 1 and parts[1] in MERGED:
            return [parts, parts[1:]]
        return [parts]

    @staticmethod
    def _note_link(links: dict[str, str], here: list[str], target: list[str]) -> None:
        if (len(here) == 1 and here[0] in MERGED) or here == ["usr", "sbin"]:
            return  # /lib → usr/lib: every archive has these links of its own; and its sbin is never bin's link
        # The link may move (lib/x → usr/lib/x), so its target is said anew, from where the link will lie.
        link = merged("/".join(here))
        end = merged(os.path.normpath("/" + "/".join(target)))
        links[link] = os.path.relpath("/" + end, "/" + os.path.dirname(link))  # noqa: PTH120
