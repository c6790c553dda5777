"""Bytes by package, and whether the booted root fits the RAM that its recipe allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from capsulekit.errors import CapsulekitError
from capsulekit.image.listing import FILE, Layer, list_layer
from capsulekit.metadata.owners import owned_paths
from capsulekit.metadata.tree import MODULES, ROOT, Tree

KERNEL, OTHER = "(kernel)", "(no package)"
# Bytes that a node without a disk writes by itself: logs, /run, files copied up for their ACLs.
ROOM = 64 << 20
NAMED = 10


def sizes(tree: Tree, packages: Mapping[str, Sequence[str]]) -> Counter[str]:
    """Bytes of the unpacked root by package; ``packages`` are by path.

    A hard-linked file counts once, a file that several packages list for the first of them.
    """
    found: Counter[str] = Counter()
    for layer, path, entry in tree.paths():
        if entry.kind == FILE and not entry.hard:
            listed = packages.get(path)
            name = KERNEL if layer == MODULES else listed[0].partition(":")[0] if listed else OTHER
            found[name] += entry.size
    return found


def check_ram(ram_max: int, layers: Sequence[tuple[str, int]], rootfs: Path) -> None:
    """Raises CapsulekitError, naming the ten largest packages, when the booted root would not fit ``ram_max`` bytes.

    ``layers`` are (member name, bytes) of the layers a node mounts, ``rootfs`` the file of the root's own; the hybrid
    layer stays on the network and is none of them. A node holds each layer as it is, compressed, and beside them room
    to write: the rule is the sum of the files' bytes and 64 MiB. The page cache is not counted: the kernel takes it
    back when memory is short.
    """
    taken = sum(size for _, size in layers)
    if taken + ROOM <= ram_max:
        return
    tree = Tree({ROOT: list_layer(Layer(rootfs))})
    named = sizes(tree, owned_paths(Layer(rootfs), tree)).most_common(NAMED)
    parts = [f"{PurePosixPath(name).name} {_mb(size)}" for name, size in layers]
    raise CapsulekitError(
        f"the root needs {_mb(taken + ROOM)} of RAM ({', '.join(parts)}, room to write {_mb(ROOM)}), and [image] "
        f"ram_max allows {_mb(ram_max)}",
        hint="install less, hybridize more, or raise ram_max; the largest in the root, unpacked: "
        + ", ".join(f"{name} {_mb(size)}" for name, size in named),
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
