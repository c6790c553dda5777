"""Several layers that lie one on the other become one: the same tree with whatever is below them.

Each path is taken from the topmost layer that has it. Deletions and replaced folders are kept where what is below the
layers (the hybrid layer too) has the path; elsewhere there is nothing that they could hide.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.edit import acls
from capsulekit.edit.changes import Changes
from capsulekit.edit.mounts import mount_layer
from capsulekit.edit.pack import LEVEL, Packed, acl_lines, finished, room_told
from capsulekit.edit.stack import Image, clear_view, held_view, merged, need_root
from capsulekit.edit.syscalls import folder_fd
from capsulekit.edit.tarout import LayerTar, layer_tar
from capsulekit.edit.walk import OPAQUE, attributes, is_opaque, is_whiteout, names_in, open_file, status_or_none
from capsulekit.image.squashfs import layer_from_tar


def flatten(
    images: Sequence[Image],
    lists: Sequence[bytes],
    *,
    below: Sequence[Image],
    below_lists: Sequence[bytes],
    hybrid: Image | None,
    work: Path,
    layer_out: Path,
    acl_out: Path,
    level: int = LEVEL,
) -> Packed:
    """Write the squashfs (and ACL list, where there is one) that stands for ``images``, topmost first, over ``below``.

    ``lists`` and ``below_lists`` are the ACL lists of those layers, topmost first; layers without one may be left out.
    ``work`` is a folder of our own to mount in (removed at the end; what a killed process left in it is cleared).
    Raises CapsulekitError, and nothing is left then.
    """
    need_root("flatten layers")
    with ExitStack() as stack:
        layers = stack.enter_context(_mounted(images, work / "layers"))
        under = stack.enter_context(merged(below, work / "below", hybrid=hybrid))
        layer_fds = [stack.enter_context(folder_fd(layer)) for layer in layers]
        below_fd = stack.enter_context(folder_fd(under))
        flat = _Flat(layer_fds, below_fd, acls.effective(lists), acls.effective(below_lists))
        layer_out.unlink(missing_ok=True)  # of a process that was killed
        total = sum(image.size or image.path.stat().st_size for image in images)
        with (
            room_told(layer_out, lambda: total),
            layer_from_tar(layer_out, 0, level, keep_times=True) as sink,
            layer_tar(sink) as tar,
        ):
            for found in flat.paths():
                flat.add(tar, found)
    work.rmdir()
    return finished(layer_out, acl_out, tar.unpacked, flat.listed, Changes())


@dataclass(frozen=True)
class _Found:
    """A path: the layer that has it, and for a folder all layers whose folders show (numbers, topmost first).

    ``opaque``: what is below all of the layers does not show. ``merged``: nor above hides it, so that it might.
    """

    path: bytes
    status: os.stat_result
    parts: tuple[int, ...]
    opaque: bool
    merged: bool


@dataclass
class _Flat:
    layers: list[int]
    below: int
    lists: acls.Acls
    below_lists: acls.Acls
    listed: list[tuple[bytes, str, bytes]] = field(default_factory=list)
    _links: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def paths(self) -> Iterator[_Found]:
        """Every path of the layers that counts, folders before what is in them, names sorted."""
        everything = tuple(range(len(self.layers)))
        frames = [(b"", everything, True, self._names(b"", everything))]
        while frames:
            folder, parts, merged, names = frames[-1]
            if not names:
                frames.pop()
                continue
            name = names.pop()
            found = self._find(folder + b"/" + name if folder else name, parts, merged)
            if found is None:
                continue
            yield found
            if stat.S_ISDIR(found.status.st_mode):
                shows = found.merged and not found.opaque
                frames.append((found.path, found.parts, shows, self._names(found.path, found.parts)))

    def _names(self, folder: bytes, parts: tuple[int, ...]) -> list[bytes]:
        return sorted({name for part in parts for name in names_in(self.layers[part], folder)}, reverse=True)

    def _find(self, path: bytes, parts: tuple[int, ...], merged: bool) -> _Found | None:
        """What the layers ``parts`` say of a path; None when it is deleted and nothing below has it."""
        top: os.stat_result | None = None
        seen: list[int] = []
        opaque = False
        for part in parts:
            status = status_or_none(self.layers[part], path)
            if status is None:
                continue
            if top is None:
                top = status
            if not stat.S_ISDIR(status.st_mode) or not stat.S_ISDIR(top.st_mode):
                seen = seen or [part]
                opaque = stat.S_ISDIR(top.st_mode)  # a folder over something else hides what that hid
                break
            seen.append(part)
            if is_opaque(self.layers[part], path):
                opaque = True
                break
        assert top is not None
        under = status_or_none(self.below, path) if merged else None
        if is_whiteout(top):
            return _Found(path, top, tuple(seen), False, merged) if under else None
        shows = under is not None and stat.S_ISDIR(under.st_mode)
        return _Found(path, top, tuple(seen), opaque and shows, shows)

    def add(self, tar: LayerTar, found: _Found) -> None:
        """Add one path to the stream."""
        if is_whiteout(found.status):
            tar.add_whiteout(found.path)
            return
        layer, path, status = found.parts[0], found.path, found.status
        root = self.layers[layer]
        kept = attributes(root, path)
        self._note_acls(path, status.st_mode)
        if found.opaque:
            kept[OPAQUE] = b"y"
        if stat.S_ISDIR(status.st_mode):
            tar.add(path, status, kept)
            return
        first = self._links.setdefault((layer, status.st_ino), path) if status.st_nlink > 1 else path
        if first != path:
            tar.add_hard_link(path, status, first)
        elif stat.S_ISREG(status.st_mode):
            with open_file(root, path) as file:
                tar.add(path, status, kept, data=file, size=status.st_size)
        else:
            target = os.readlink(path, dir_fd=root) if stat.S_ISLNK(status.st_mode) else b""
            tar.add(path, status, kept, target=target)

    def _note_acls(self, path: bytes, mode: int) -> None:
        """The lines of the lists that still say something about the path, above what the lists below say."""
        held = {}
        for kind, key in acls.ATTRIBUTES.items():
            value = self.lists.get((path, kind), self.below_lists.get((path, kind), b""))
            if value and not acls.is_minimal(value):
                held[key] = value
        self.listed += acl_lines(path, mode, held, self.below_lists)


@contextmanager
def _mounted(images: Sequence[Image], folder: Path) -> Iterator[list[Path]]:
    """Layers, each mounted by itself."""
    with held_view(folder):
        clear_view(folder)
        places = [folder / str(number) for number in range(len(images))]
        try:
            for place, image in zip(places, images, strict=True):
                place.mkdir(mode=0o700)
                mount_layer(image.path.absolute(), place, image.offset, image.size)
            yield places
        finally:
            clear_view(folder)
