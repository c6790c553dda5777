"""Re-split: the parts of a generation that move when the site's hybridize list changes.

The author's root layer and the old hybrid layer are joined and divided anew by the wanted globs. Edit layers, the
site's layer and everything else stay as they are: a path that one of them deleted or replaced stays so, because they
lie above both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from capsulekit.capsule.manifest import HYBRID, Layer, Manifest
from capsulekit.errors import CapsulekitError
from capsulekit.files import read_bounded, sha256_file
from provisioner.vnfs.hybridlist import list_file, same_globs, taken_folders, wanted_globs
from provisioner.vnfs.views import view

if TYPE_CHECKING:
    from capsulekit.edit.split import Split
    from capsulekit.edit.stack import Image
    from capsulekit.rootfs.hybrid import Hybrid, Kept
    from provisioner.vnfs.generation import Generation, Part
    from provisioner.vnfs.store import VnfsStore

__all__ = ["Resplit", "needs_resplit", "resplit", "wanted_globs"]

ROOT = "layers/rootfs.squashfs"
# zstd level of what is packed here: that of recipes that say none.
LEVEL = 3
MAX_ACL = 64 << 20  # bytes of a layer's list of ACLs


@dataclass(frozen=True)
class Resplit:
    """What a re-split came to: ``parts`` to put into a new generation, members to ``drop``, its ``manifest``.

    ``lines`` say for people what each glob moves and what stays, and why. ``hybrid`` tells whether anything lies on the
    network now.
    """

    parts: tuple[Part, ...]
    drop: tuple[str, ...]
    manifest: Manifest
    lines: tuple[str, ...]
    hybrid: bool


def needs_resplit(store: VnfsStore, base: Generation, globs: Sequence[str]) -> bool:
    """Whether ``globs`` (see wanted_globs) are not those that ``base`` is divided by.

    Also where the site has a list and the capsule's own, the same one, was never followed, as in one from Perceus.
    """
    if not same_globs(globs, base.manifest.hybridize):
        return True
    return bool(globs) and HYBRID not in base.digests and list_file(store.paths, base.row) is not None


def resplit(store: VnfsStore, base: Generation, globs: Sequence[str], work: Path) -> Resplit:
    """Divide ``base`` anew by ``globs`` (see wanted_globs); its files are written below ``work``, an empty folder.

    Needs root, because layers are mounted. ``base`` may be a generation that is not stored yet, as long as its layers
    are blobs. Raises CapsulekitError when a glob takes what has to stay, with the chain that needs it, or when this
    capsule's kernel has no NFS; nothing but files in ``work`` is left behind then.
    """
    from capsulekit.edit.split import split_root
    from capsulekit.rootfs.hybrid import describe
    from provisioner.vnfs.generation import Part

    root = _root_layer(base, globs)
    below = [_image(store, base, name) for name in (ROOT, HYBRID) if name in base.digests]
    hybrid = _decider(store, base, globs, root)
    with view(store.paths, f"split-{base.row.name}", below) as tree:
        made = split_root(tree, _made(work / "layers"), hybrid, base.manifest.epoch, LEVEL)
    layer = replace(root, size=made.rootfs.stat().st_size, sha256=sha256_file(made.rootfs), unpacked=made.unpacked)
    layers = tuple(layer if one.path == ROOT else one for one in base.manifest.layers)
    parts = [Part(ROOT, made.rootfs, private=False)]
    parts += _network_parts(store, base, made, work)
    kept = (*hybrid.kept, *_kept_above(store, base, hybrid))
    unmatched = [f"{glob}: nothing of the root is called so" for glob in hybrid.unmatched()]
    return Resplit(
        parts=tuple(parts),
        drop=(HYBRID,) if made.hybrid is None and HYBRID in base.digests else (),
        manifest=replace(base.manifest, layers=layers, hybridize=tuple(globs)),
        lines=(*describe(made.moved, kept), *unmatched),
        hybrid=made.hybrid is not None,
    )


def _root_layer(base: Generation, globs: Sequence[str]) -> Layer:
    """The author's root layer; raises CapsulekitError when nothing of it may leave the nodes."""
    layer = next((one for one in base.manifest.layers if one.path == ROOT), None)
    if layer is None:
        raise CapsulekitError(f"{base.row.name} has no {ROOT}, which is what a hybridize list divides")
    if layer.private and globs:
        raise CapsulekitError(
            f"all layers of {base.row.name} are private, and private files never travel by NFS",
            hint="empty its hybridize list",
        )
    return layer


def _decider(store: VnfsStore, base: Generation, globs: Sequence[str], root: Layer) -> Hybrid:
    """What decides each path, not scanned yet. The boot closure is that of the whole root, as a node sees it."""
    from capsulekit.rootfs.closure import boot_closure
    from capsulekit.rootfs.hybrid import Hybrid

    if not globs:
        return Hybrid((), {})
    file = list_file(store.paths, base.row)
    where = str(file) if file else f"the hybridize list of {base.row.name}:"
    names = [*(layer.path for layer in base.manifest.layers), *([HYBRID] if HYBRID in base.digests else [])]
    taken = taken_folders(store.paths, base.row)
    whole = [_image(store, base, name) for name in names]
    with view(store.paths, f"whole-{base.row.name}", whole) as tree:
        closure = boot_closure(tree, base.manifest.init)
        _check_network(tree, base.manifest)
    acls = _acl_paths(store, base, root)
    return Hybrid(globs, closure, acls=acls, taken=taken, where=where)


def _check_network(tree: Path, told: Manifest) -> None:
    """Stage 2 takes the network layer's drivers from the capsule's modules: they must be there."""
    from initramfs_builder.modules import ModuleTree

    from capsulekit.kernel import HYBRID_MODULES

    try:
        ModuleTree(tree, told.kernel_release).closure(HYBRID_MODULES)
    except CapsulekitError as error:
        raise CapsulekitError(
            f"the kernel {told.kernel_release} can't mount a network layer: {error}",
            hint="empty the hybridize list, or take another kernel: capsulekit vnfs kernel",
        ) from None


def _acl_paths(store: VnfsStore, base: Generation, root: Layer) -> frozenset[str]:
    """The paths of the root layer that have an ACL: lines of a percent-escaped path, a tab and more."""
    from urllib.parse import unquote_to_bytes

    if root.acl is None:
        return frozenset()
    data = read_bounded(store.blob(base.digests[root.acl]), MAX_ACL)
    lines = data.decode("ascii", "replace").splitlines()
    return frozenset(
        unquote_to_bytes(line.partition("\t")[0]).decode("utf-8", "surrogateescape").strip("/") for line in lines
    )


def _network_parts(store: VnfsStore, base: Generation, made: Split, work: Path) -> Iterator[Part]:
    """The new hybrid layer, and the initrd that can mount it, where the old one may not."""
    from provisioner.vnfs.generation import Part

    if made.hybrid is None:
        return
    yield Part(HYBRID, made.hybrid, private=False)
    if HYBRID not in base.digests:
        from provisioner.vnfs.kernel import rebuilt_initrd

        yield rebuilt_initrd(store, base, work, hybrid=True)


def _kept_above(store: VnfsStore, base: Generation, hybrid: Hybrid) -> Iterator[Kept]:
    """What the globs match in the layers above the author's: it stays where it is."""
    from capsulekit.image import listing
    from capsulekit.rootfs.hybrid import Kept

    if not hybrid.globs:
        return
    for layer in base.manifest.layers:
        if layer.path in (ROOT, "layers/modules.squashfs"):
            continue
        found = listing.list_layer(listing.Layer(store.blob(base.digests[layer.path])))
        for path, entry in found.items():
            if path and entry.kind in (listing.FILE, listing.LINK) and hybrid.matches(path):
                yield Kept(path, f"it is in {layer.path}, which stays on the node")


def _image(store: VnfsStore, base: Generation, name: str) -> Image:
    from capsulekit.edit.stack import Image

    return Image(store.blob(base.digests[name]))


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True)
    return folder
