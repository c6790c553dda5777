"""The paths of a capsule: its layers' listings, stacked as a node stacks them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from capsulekit.capsule.manifest import HYBRID, Manifest
from capsulekit.capsule.read import CapsuleFile
from capsulekit.image.listing import FOLDER, LINK, Entry, Layer, list_layer
from capsulekit.metadata.paths import plain

MODULES = "layers/modules.squashfs"
ROOT = "layers/rootfs.squashfs"
WHITEOUT = ("character device", "0:0")
MAX_LINKS = 40  # what the kernel follows in one path (path_resolution(7))


@dataclass(frozen=True)
class Tree:
    """Listings by the layer's member name, topmost first; paths are relative to the root.

    Where a layer has no folder any more, what lower layers have in it is gone. That a folder was replaced by a new one
    is in no listing (an extended attribute says it): what was in the old one seems to be there still.
    """

    listings: Mapping[str, Mapping[str, Entry]]

    def find(self, path: str) -> tuple[str, Entry] | None:
        """The topmost layer that says something of a path, and what; a whiteout counts, also one of a folder above."""
        gone: tuple[str, Entry] | None = None
        for layer, entries in self.listings.items():
            if path in entries:
                return gone or (layer, entries[path])
            if gone is None and (end := next((p for p in _above(path) if _ends(entries.get(p))), None)) is not None:
                gone = layer, replace(entries[end], kind=WHITEOUT[0], target=WHITEOUT[1])
        return None

    def real(self, path: str) -> str:
        """The path with links on the way to it followed, as the node's kernel would; its last part stays."""
        folder, _, name = path.rpartition("/")
        return posixpath.join(self._folder(folder, 0), name)

    def follow(self, path: str) -> str | None:
        """Where a link leads, or None for anything else."""
        target = self._links.get(path)
        return None if target is None else self.real(plain(posixpath.join("/", posixpath.dirname(path), target)))

    def _folder(self, path: str, links: int) -> str:
        if path == "" or links > MAX_LINKS:
            return path
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            parent = self._folder(above, links)
            here = posixpath.join(parent, name)
            target = self._links.get(here)
            if target is not None:
                here = self._folder(plain(posixpath.join("/", parent, target)), links + 1)
            self._folders[path] = here
        return self._folders[path]

    @cached_property
    def _folders(self) -> dict[str, str]:
        """Folders that were resolved already."""
        return {}

    @cached_property
    def _links(self) -> dict[str, str]:
        """Links and their targets."""
        return {path: entry.target for _, path, entry in self.paths() if entry.kind == LINK}

    def paths(self) -> Iterator[tuple[str, str, Entry]]:
        """(layer, path, entry) of all that a node sees, in no order."""
        seen: set[str] = set()
        ends: set[str] = set()  # paths that are no folders, where a layer above says so
        for layer, entries in self.listings.items():
            for path, entry in entries.items():
                if path not in seen and ends.isdisjoint(_above(path)):
                    seen.add(path)
                    if (entry.kind, entry.target) != WHITEOUT:
                        yield layer, path, entry
            ends |= {path for path, entry in entries.items() if entry.kind != FOLDER}


def _above(path: str) -> Iterator[str]:
    """The folders on the way to a path, the nearest first."""
    while path := path.rpartition("/")[0]:
        yield path


def _ends(entry: Entry | None) -> bool:
    return entry is not None and entry.kind != FOLDER


def layers_of(capsule: CapsuleFile, manifest: Manifest) -> dict[str, Layer]:
    """Where each layer lies in the capsule file, topmost first; the hybrid layer, which a node mounts last, is last."""
    names = [layer.path for layer in manifest.layers]
    names += [HYBRID] if HYBRID in capsule.members else []
    return {name: Layer(capsule.path, capsule.members[name].offset) for name in names if name in capsule.members}


def tree_of(capsule: CapsuleFile, manifest: Manifest) -> Tree:
    """List every layer of a capsule."""
    return Tree({name: list_layer(layer) for name, layer in layers_of(capsule, manifest).items()})
