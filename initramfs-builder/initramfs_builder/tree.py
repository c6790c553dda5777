"""An extracted package tree, read as if it were an installed, merged-/usr system.

Debian 12 packages hold both /lib/… and /usr/lib/… as real folders; installed, /lib is a link to usr/lib. Here every
path is looked up under both names and spoken of by its merged one (usr/lib/…), relative to the root. Symbolic links
are followed inside the root only, whatever they say.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from initramfs_builder.errors import CapsulekitError

MERGED = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32"})
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
    """Look-ups in a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

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
            here = self._on_disk([*done, part])
            if here is None:
                return None
            host = self.root.joinpath(*here)
            if not host.is_symlink():
                done = here
                continue
            hops += 1
            if hops > LINK_LIMIT:
                raise CapsulekitError(f"{path} in {self.root} is a loop of symbolic links")
            target = str(host.readlink())
            done = [] if target.startswith("/") else here[:-1]
            self._note_link(links, here, [*done, *target.split("/")])
            todo = target.split("/") + todo
        host = self.root.joinpath(*done)
        return Found(merged("/".join(done)), host, links) if host.exists() else None

    def listing(self, path: str) -> list[str]:
        """Sorted names in a folder, under both of its names; empty when it does not exist."""
        names: set[str] = set()
        for parts in self._spellings(merged(path).split("/")):
            host = self.root.joinpath(*parts)
            if host.is_dir() and self._free_of_links(host):
                names.update(entry.name for entry in host.iterdir())
        return sorted(names)

    def _on_disk(self, parts: list[str]) -> list[str] | None:
        if parts == ["usr"]:
            return parts  # a tree with nothing but /lib still has what is looked for in usr/lib
        for spelling in self._spellings(parts):
            host = self.root.joinpath(*spelling)
            if os.path.lexists(host) and self._free_of_links(host.parent):
                return spelling
        return None

    def _free_of_links(self, host: Path) -> bool:
        return os.path.realpath(host) == str(host)

    @staticmethod
    def _spellings(parts: list[str]) -> list[list[str]]:
        if parts[0] in MERGED:
            return [parts, ["usr", *parts]]
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
