"""The site's own layer: a few files on top of a capsule, in folders that look just as they do below.

A folder of an upper layer hides owner and mode of the one under it, and hides a link altogether (a real ``lib`` over
``lib -> usr/lib`` would hide the C library): so the layers below are listed first.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.image.listing import FOLDER, LINK, Entry, list_layer
from capsulekit.image.listing import Layer as Image
from capsulekit.image.squashfs import layer_from_tar
from provisioner.vnfs.questions import SiteFile

# mksquashfs' level for zstd; the layer is a few kilobytes.
LEVEL = 3
MOST_LINKS = 40  # as the kernel's own limit (path_resolution(7))
_ROOT = Entry(FOLDER, 0o755, 0, 0)


@dataclass(frozen=True)
class Placed:
    """A file at the place it really has once every link on the way is followed."""

    path: str
    file: SiteFile


def seen_root(images: Sequence[Path]) -> dict[str, Entry]:
    """What a node's root holds: the layers' listings over each other, ``images`` topmost first. Raises TrustError.

    Folders that an edit made opaque show what is below all the same: no listing tells attributes.
    """
    root: dict[str, Entry] = {}
    for image in reversed(images):
        above = list_layer(Image(image))
        for path, entry in above.items():
            below = root.get(path)
            # A char device 0:0 is overlayfs' mark for "removed here".
            if entry.target == "0:0" and entry.kind not in (FOLDER, LINK):
                root.pop(path, None)
                root = {other: kept for other, kept in root.items() if not other.startswith(f"{path}/")}
                continue
            if below is not None and below.kind == FOLDER and entry.kind != FOLDER:
                root = {other: kept for other, kept in root.items() if not other.startswith(f"{path}/")}
            root[path] = entry
    return root


def place(root: Mapping[str, Entry], files: Sequence[SiteFile]) -> list[Placed]:
    """Where each file goes. Raises CapsulekitError when a folder stands there, or two files meet at one place."""
    placed: dict[str, Placed] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        path = "/".join(part for part in (_real(root, folder, file.path), name) if part)
        there = root.get(path)
        if there is not None and there.kind == FOLDER:
            raise CapsulekitError(f"the capsule has a folder at /{file.path}: no file can go there")
        if path in placed:
            raise CapsulekitError(f"/{file.path} and /{placed[path].file.path} are one and the same file there")
        placed[path] = Placed(path, file)
    return [placed[path] for path in sorted(placed)]


def write_layer(out: Path, root: Mapping[str, Entry], placed: Sequence[Placed], epoch: int) -> int:
    """Write the squashfs; returns its unpacked size in bytes. The same files give the same bytes."""
    folders = sorted({parent for one in placed for parent in _parents(one.path)})
    with (
        layer_from_tar(out, epoch, LEVEL) as sink,
        tarfile.open(
            fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar,
    ):
        for folder in folders:
            entry = root.get(folder, _ROOT)
            tar.addfile(_info(folder, tarfile.DIRTYPE, entry.mode, entry.uid, entry.gid, epoch))
        for one in placed:
            info = _info(one.path, tarfile.REGTYPE, one.file.mode, 0, 0, epoch)
            info.size = len(one.file.data)
            tar.addfile(info, io.BytesIO(one.file.data))
    return sum(-(-len(one.file.data) // 4096) * 4096 for one in placed) + 4096 * (len(folders) + 1)


def acl_list(lists: Sequence[bytes], placed: Sequence[Placed]) -> bytes:
    """The ACL list of the layer, b"" where it needs none: its files have no more than their modes, whatever was there.

    ``lists`` are those of the layers below, topmost first. Raises CapsulekitError for a damaged one.
    """
    from capsulekit.edit import acls

    held = acls.effective(lists)
    files = [(one.path.encode("utf-8", "surrogateescape"), one.file.mode) for one in placed]
    return acls.listed((path, acls.ACCESS, acls.minimal(mode)) for path, mode in files if held.get((path, acls.ACCESS)))


def _info(path: str, kind: bytes, mode: int, uid: int, gid: int, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode & 0o7777, uid, gid, epoch
    return info


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _real(root: Mapping[str, Entry], folder: str, wanted: str) -> str:
    """The folder with every link on the way followed, inside of the root. Raises CapsulekitError."""
    todo, done, links = [p for p in folder.split("/") if p], list[str](), 0
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        here = "/".join([*done, part])
        entry = root.get(here)
        if entry is not None and entry.kind == LINK:
            links += 1
            if links > MOST_LINKS:
                raise CapsulekitError(f"/{wanted} leads through links that never end")
            done = [] if entry.target.startswith("/") else done
            todo[:0] = entry.target.split("/")
            continue
        if entry is not None and entry.kind != FOLDER:
            raise CapsulekitError(f"/{here} is no folder in the capsule: /{wanted} can't go there")
        done.append(part)
    return "/".join(done)
