"""``vnfs kernel`` and ``vnfs rebuild``: another kernel for an installed capsule, and what follows from today's stage 2.

The root layers stay what they are; boot/vmlinuz, boot/initrd.img and layers/modules.squashfs are made anew.
umount does its part with capsulekit.edit.modules and capsulekit.edit.initrd; of this file it needs nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from capsulekit.capsule.layout import MAX_BOOTED
from capsulekit.capsule.manifest import HYBRID, Layer, Manifest
from capsulekit.edit import initrd
from capsulekit.edit.modules import Foreign, foreign_modules, holds_modules, layer_listing, moved_lines, refused
from capsulekit.edit.restack import check_shown, write_restacked
from capsulekit.edit.stack import Image, need_root
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from provisioner.registry.model import InstalledCapsule
from provisioner.vnfs.edits import Edits
from provisioner.vnfs.edits import told as told_edit
from provisioner.vnfs.generation import Generation, Part, new_generation, stored, switch
from provisioner.vnfs.kernelsource import IMAGE, INITRD, MODULES, NewKernel, Root, check_sources, new_kernel
from provisioner.vnfs.place import Placing, placing
from provisioner.vnfs.remove import free_unused
from provisioner.vnfs.store import VnfsStore
from provisioner.vnfs.views import view

RECIPE = "recipe.toml"
# Layers that edits, or answers, have put on top.
_ABOVE = re.compile(r"layers/([0-9]{2})-[A-Za-z0-9._-]+\.squashfs")
_ROOT = "layers/rootfs.squashfs"


@dataclass(frozen=True)
class Swapped:
    """A capsule after a kernel swap or a rebuild: releases before and after; ``lines`` say more, for people.

    ``changed`` is False when all of it was so already: no generation was made.
    """

    capsule: InstalledCapsule
    changed: bool
    old: str
    new: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Next:
    """A generation to be: its manifest, and the members that are not its base's."""

    told: Manifest
    parts: tuple[Part, ...]
    drop: tuple[str, ...]
    lines: tuple[str, ...]


def swap_kernel(
    store: VnfsStore, name: str, sources: Sequence[str], *, move: bool = False, dry_run: bool = False
) -> Swapped:
    """Give an installed capsule the kernel of packages, or of another capsule (a file or an installed name).

    Raises CapsulekitError when there is not exactly one kernel for its architecture, an edit layer holds modules of
    another release and not ``move``, or the capsule is being edited; TrustError for a capsule file that nobody trusted
    here has signed.
    """
    need_root("change the kernel of a capsule")
    with _workshop(store, name, "change the kernel of") as (base, placed, work):
        old = base.manifest.kernel_release
        check_sources(store, sources, base.manifest.arch)
        kernel = _fetched(store, base, sources, work)
        if _has(base, kernel):
            line = f"{base.row.name} has this kernel {old} already: nothing to do"
            return Swapped(base.row, False, old, old, (line,))
        made = _with_kernel(store, base, kernel, work, move=move)
        row = _make(store, placed, base, made, "kernel", f"{old} → {kernel.release}", dry_run=dry_run)
        return Swapped(row, True, old, kernel.release, made.lines)


def rebuild(store: VnfsStore, name: str, *, dry_run: bool = False) -> Swapped:
    """Make anew what follows from today's capsulekit and this site: hybrid layer and initrd; else nothing changes.

    ``changed`` is False when it all is as it would be made today; then no generation is made. Raises CapsulekitError
    when a part can't be made, or the capsule is being edited.
    """
    from provisioner.vnfs.resplit import needs_resplit, resplit, wanted_globs

    need_root("rebuild a capsule")
    with _workshop(store, name, "rebuild") as (base, placed, work):
        release = base.manifest.kernel_release
        globs = wanted_globs(store, base)
        made = _Next(base.manifest, (), (), ())
        if needs_resplit(store, base, globs):
            (work / "split").mkdir()
            split = resplit(store, base, globs, work / "split")
            made = _Next(split.manifest, split.parts, split.drop, ("divided anew by its hybridize list", *split.lines))
        if all(part.name != INITRD for part in made.parts):
            why, parts = _newer_initrd(store, base, work)
            made = replace(made, parts=(*made.parts, *parts), lines=(*made.lines, *why))
        if not made.parts and not made.drop and made.told == base.manifest:
            return Swapped(base.row, False, release, release, (f"{base.row.name} is as it would be made today",))
        row = _make(store, placed, base, made, "rebuild", made.lines[0], dry_run=dry_run)
        return Swapped(row, True, release, release, made.lines)


def rebuilt_initrd(store: VnfsStore, base: Generation, work: Path, *, hybrid: bool = False) -> Part:
    """The initrd of a generation by today's stage 2, for a new one; ``hybrid`` adds what mounts a network layer.

    Written below ``work``. Needs root. Raises CapsulekitError as ``capsulekit.edit.initrd.rebuild_initrd`` does.
    """
    with _view(store, base, base.manifest.layers, {}, "initrd") as root:
        return _initrd(store, base, base.manifest, root, work, hybrid=hybrid)[0]


# --- the steps


@contextmanager
def _workshop(store: VnfsStore, name: str, doing: str) -> Iterator[tuple[Generation, Placing, Path]]:
    """What nodes boot of a capsule, which nobody edits now, a way into the store, and a private folder to work in."""
    store.get(name)  # nothing is made for a name that is none
    with store.lock():
        row = store.get(name)
        edit = Edits(store.paths).of(row.name)
        if edit is not None:
            raise CapsulekitError(told_edit(edit), hint=f"first: capsulekit umount {row.name}, or close it")
        base = stored(store, row, row.identity)
        with (
            placing(store, f"{doing} {row.name}") as placed,
            tempfile.TemporaryDirectory(prefix=".layer-", dir=store.home(row.name)) as work,
        ):
            yield base, placed, Path(work)
        free_unused(store)


@contextmanager
def _view(
    store: VnfsStore, base: Generation, layers: Sequence[Layer], files: dict[str, Path], what: str
) -> Iterator[Path]:
    """A read-only view of these layers; ``files`` are those that are not blobs yet, by member."""
    images = [Image(files.get(layer.path) or store.blob(base.digests[layer.path])) for layer in layers]
    with view(store.paths, f"{what}-{base.row.name}", images) as root:
        yield root


def _fetched(store: VnfsStore, base: Generation, sources: Sequence[str], work: Path) -> NewKernel:
    """The new kernel, its modules where this root looks for them."""
    told = base.manifest
    recipe = initrd.told_recipe(store.small(base.row.name, RECIPE) or b"")
    others = [layer for layer in told.layers if layer.path != MODULES]
    with _view(store, base, others, {}, "root") as root:
        prefix = "usr/lib" if (root / "lib").is_symlink() else "lib"
    fits = Root(told.arch, prefix, told.epoch, recipe.level if recipe is not None else 3)
    mine = [layer for layer in told.layers if layer.path == MODULES]
    if not mine:
        return new_kernel(store, sources, fits, work, None)
    with _view(store, base, mine, {}, "modules") as seen:
        firmware = next((seen / p / "firmware" for p in ("usr/lib", "lib") if (seen / p / "firmware").is_dir()), None)
        return new_kernel(store, sources, fits, work, firmware)


def _has(base: Generation, kernel: NewKernel) -> bool:
    same = base.manifest.kernel_release == kernel.release and base.digests.get(MODULES) == kernel.layer.sha256
    return same and base.digests[IMAGE] == sha256_file(kernel.image)


def _with_kernel(store: VnfsStore, base: Generation, kernel: NewKernel, work: Path, *, move: bool) -> _Next:
    told = base.manifest
    layer = replace(kernel.layer, path=MODULES)
    if kernel.acl is not None:
        layer = replace(layer, acl="layers/modules.acl")
    told = replace(told, kernel_release=kernel.release, layers=_placed(told.layers, layer))
    files = {MODULES: kernel.modules}
    parts = [Part(IMAGE, kernel.image), Part(MODULES, kernel.modules, layer.private)]
    if kernel.acl is not None and layer.acl is not None:
        parts.append(Part(layer.acl, kernel.acl, layer.private))
    lines = [f"kernel {base.manifest.kernel_release} → {kernel.release} from {kernel.whence}"]
    above, foreign = _edited(store, base, kernel.release)
    if foreign and not move:
        raise refused(foreign, kernel.release)
    if above or foreign:
        told, more, said = _restacked(store, base, told, files, foreign, work)
        parts, lines = [*parts, *more], [*lines, *said]
    with _view(store, base, told.layers, files, "new") as root:
        part, remarks = _initrd(store, base, told, root, work, proof=kernel.proof)
    return _Next(told, (*parts, part), (), (*lines, *remarks))


def _placed(layers: tuple[Layer, ...], new: Layer) -> tuple[Layer, ...]:
    """The layers with the new one where the old modules layer was; without one, above the root."""
    if any(layer.path == MODULES for layer in layers):
        return tuple(new if layer.path == MODULES else layer for layer in layers)
    at = next((n for n, layer in enumerate(layers) if layer.path == _ROOT), 0)
    return (*layers[:at], new, *layers[at:])


def _edited(store: VnfsStore, base: Generation, release: str) -> tuple[bool, tuple[Foreign, ...]]:
    """Whether layers above the author's show modules of ``release``, and what they show of other kernels."""
    names = [layer.path for layer in base.manifest.layers if _ABOVE.fullmatch(layer.path)]
    listings = [layer_listing(Image(store.blob(base.digests[name]))) for name in names]
    return holds_modules(listings, release), foreign_modules(listings, release)


def _restacked(
    store: VnfsStore,
    base: Generation,
    told: Manifest,
    files: dict[str, Path],
    foreign: Sequence[Foreign],
    work: Path,
) -> tuple[Manifest, list[Part], list[str]]:
    """The manifest with one more edit layer, in which moved files and depmod's indexes lie; the same if none is due."""
    out = work / "restacked.squashfs"
    with _view(store, base, told.layers, files, "stack") as root:
        check_shown(root, told.kernel_release, layer_listing(Image(files[MODULES])))
        lines = moved_lines(root, foreign, told.kernel_release)
        unpacked = write_restacked(out, root, foreign, told.kernel_release, told.epoch)
    if unpacked is None:
        return told, [], lines
    path = _next_edit(told.layers)
    layer = Layer(path, out.stat().st_size, sha256_file(out), unpacked, private=True)
    files[path] = out
    lines.append(f"{path}: depmod's indexes over the whole stack")
    return replace(told, layers=(layer, *told.layers)), [Part(path, out, private=True)], lines


def _next_edit(layers: Sequence[Layer]) -> str:
    """The next free ``layers/NN-edit.squashfs``; raises CapsulekitError when 99 of them are there."""
    taken = [int(found[1]) for layer in layers if (found := _ABOVE.fullmatch(layer.path)) and "-edit" in layer.path]
    number = max(taken, default=0) + 1
    if number > 99:
        raise CapsulekitError("there is no number left for one more edit layer", hint="umount it once with --flatten")
    return f"layers/{number:02}-edit.squashfs"


def _initrd(
    store: VnfsStore,
    base: Generation,
    told: Manifest,
    root: Path,
    work: Path,
    *,
    hybrid: bool = False,
    proof: Path | None = None,
) -> tuple[Part, tuple[str, ...]]:
    wanted = initrd.stage2_modules(store.blob(base.digests[RECIPE]).read_bytes())
    made = initrd.rebuild_initrd(
        work / "initrd.img", store.blob(base.digests[INITRD]), root, told.kernel_release, wanted, told.epoch,
        hybrid=hybrid or HYBRID in base.digests, kernel=proof,
    )  # fmt: skip
    return Part(INITRD, made.path), made.remarks


def _newer_initrd(store: VnfsStore, base: Generation, work: Path) -> tuple[list[str], list[Part]]:
    """Why the initrd is made again, and the new one; nothing when it is as it would be made today."""
    told, old = base.manifest, store.blob(base.digests[INITRD])
    wanted = initrd.stage2_modules(store.blob(base.digests[RECIPE]).read_bytes())
    with _view(store, base, told.layers, {}, "initrd") as root:
        why = initrd.needs_initrd(old, told.kernel_release, wanted, root, hybrid=HYBRID in base.digests)
        if not why:
            return [], []
        part, remarks = _initrd(store, base, told, root, work)
    return [f"initrd made again: {why}", *remarks], [part]


def _make(
    store: VnfsStore, placed: Placing, base: Generation, made: _Next, kind: str, message: str, *, dry_run: bool
) -> InstalledCapsule:
    """Store the generation and let nodes boot it; with ``dry_run`` only see whether it could be."""
    made.told.dumps()
    for part in made.parts:
        size = part.source.stat().st_size if isinstance(part.source, Path) else len(part.source)
        if size >= MAX_BOOTED and part.name != HYBRID:
            raise CapsulekitError(f"{part.name} has {size} bytes; the format ends at {MAX_BOOTED}")
    if dry_run:
        return base.row
    row = new_generation(store, placed, base, made.told, made.parts, drop=made.drop)
    switch(store, row, base=base.row.identity, kind=kind, message=message)
    return row


__all__ = ["Swapped", "rebuild", "rebuilt_initrd", "swap_kernel"]
