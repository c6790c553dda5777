"""Packing an edit: only what was changed becomes a layer, and what depends on it (initrd, kernel, hybrid) follows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsulekit.capsule.manifest import EDIT, HYBRID, Layer, Manifest
from capsulekit.edit.changes import Changes, changes
from capsulekit.edit.modules import Settled, adopt_kernel, settle
from capsulekit.edit.mounts import remove_tree
from capsulekit.edit.pack import Packed as PackedLayer
from capsulekit.edit.pack import pack_changes
from capsulekit.edit.record import EditRecord
from capsulekit.edit.stack import UPPER, Image
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import CHUNK
from provisioner.vnfs.generation import Part

if TYPE_CHECKING:
    from provisioner.vnfs.editsave import Base

# So many edit layers a node mounts at most; one more, and umount makes one of them.
MOST_EDITS = 16
MODULES, KERNEL, INITRD = "layers/modules.squashfs", "boot/vmlinuz", "boot/initrd.img"
# In an edit's folder, while it is packed.
WORK = "pack"


@dataclass(frozen=True)
class Asked:
    """How an edit is to be packed: see the options of umount. ``verbose``: every path is told."""

    flatten: bool = False
    adopt: bool = False
    move: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Packed:
    """What an edit came to: ``parts`` by member and members to ``drop`` make the new generation with ``manifest``.

    Neither, and there is nothing to make. ``kind`` is for the history; ``summary`` of the changes; ``size`` of the new
    layer in bytes; ``flattened`` is how many layers became one; ``initrd`` why it was made again, or "".
    """

    manifest: Manifest
    parts: Mapping[str, Part]
    drop: Sequence[str] = ()
    kind: str = "edit"
    summary: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    size: int = 0
    flattened: int = 0
    initrd: str = ""


def settled(folder: Path, record: EditRecord, base: Base, asked: Asked, *, dry_run: bool) -> Settled:
    """Set the modules in an edit right, while it can be written to. Raises CapsulekitError for another kernel's."""
    layers = zip(record.images, base.manifest.layers, strict=True)
    edits = [image for image, layer in layers if EDIT.fullmatch(layer.path)]
    return settle(
        Path(record.at), folder / UPPER, edits, base.manifest.kernel_release,
        move=asked.move, adopt=asked.adopt, dry_run=dry_run,
    )  # fmt: skip


def planned(folder: Path, record: EditRecord, base: Base, settled: Settled, asked: Asked) -> Packed:
    """What packing would come to, for people; nothing is written."""
    changed = changes(folder, family=family_of(Path(record.at)))
    lines = [*lines_of(changed, asked.verbose), *settled.lines]
    count = sum(1 for layer in base.manifest.layers if EDIT.fullmatch(layer.path)) + (not changed.empty)
    if count > 1 and (asked.flatten or count > MOST_EDITS):
        lines.append(f"{count} edit layers would become one where they follow one another")
    if _resplit_wanted(base):
        lines.append("the hybridize list has changed: the root would be divided anew")
    return Packed(base.manifest, {}, summary=changed.summary(), lines=tuple(lines))


def changed_lines(folder: Path, record: EditRecord) -> tuple[str, ...]:
    """What was changed so far, a line each; nothing when nothing was."""
    found = changes(folder, family=family_of(Path(record.at)))
    return () if found.empty else tuple(lines_of(found, verbose=False))


def lines_of(changed: Changes, verbose: bool) -> list[str]:
    """Changes for people; of caches and the like that are not stored only their number, unless ``verbose``."""
    lines = changed.lines(verbose)
    if verbose or not changed.cleaned:
        return lines
    told = [line for line in lines if not line.startswith("cleaned ")]
    return [*told, f"{len(changed.cleaned)} caches, logs and identity files are not kept (-v names them)"]


def pack(folder: Path, record: EditRecord, base: Base, settled: Settled, asked: Asked, work: Path) -> Packed:
    """Pack a frozen edit into files below ``work``. Raises CapsulekitError naming what can't be packed."""
    at = Path(record.at)
    layer, acl = work / "edit.squashfs", work / "edit.acl"
    made = pack_changes(folder, layer, acl, family=family_of(at), leave_out=settled.leave_out)
    build = _Build(folder, record, base, work)
    build.lines += [*lines_of(made.changes, asked.verbose), *settled.lines]
    if _resplit_wanted(base):
        build.resplit()
    if settled.adopted:
        build.adopt(settled)
    if made.layer is not None:
        build.add_edit(made)
    if asked.flatten or build.edits() > MOST_EDITS:
        build.flatten(MOST_EDITS if not asked.flatten else 0)
    why = build.initrd(settled) if not made.changes.empty or settled.adopted else ""
    kind = "edit" if made.layer is not None or settled.adopted else "flatten" if build.flattened else "rebuild"
    return Packed(
        build.manifest, build.parts, tuple(build.drop), kind, _summary(made.changes, build.flattened),
        tuple(build.lines), made.size, build.flattened, why,
    )  # fmt: skip


def _summary(changed: Changes, flattened: int) -> dict[str, Any]:
    return {**changed.summary(), **({"flattened": flattened} if flattened else {})}


class _Build:
    """A generation in the making: the base's manifest and what is put in, and taken out."""

    def __init__(self, folder: Path, record: EditRecord, base: Base, work: Path) -> None:
        self.manifest = base.manifest
        self.parts: dict[str, Part] = {}
        self.drop: list[str] = []
        self.lines: list[str] = []
        self.flattened = 0
        self._folder, self._at, self._base, self._work = folder, Path(record.at), base, work
        self._hybrid_image = record.hybrid
        # Where each layer lies: those that are mounted, and those made here.
        self._images = {layer.path: image for image, layer in zip(record.images, base.manifest.layers, strict=True)}
        self._lists: dict[str, Path] = {}  # by layer, the ACL list that was made here

    def edits(self) -> int:
        """How many edit layers there are."""
        return sum(1 for layer in self.manifest.layers if EDIT.fullmatch(layer.path))

    def resplit(self) -> None:
        """Divide the root anew by today's hybridize list."""
        from provisioner.vnfs.hybridlist import wanted_globs
        from provisioner.vnfs.resplit import resplit

        store, stored = self._base.store, self._base.stored
        assert store is not None and stored is not None
        place = self._work / "split"
        place.mkdir()
        done = resplit(store, stored, wanted_globs(store, stored), place)
        self.manifest = done.manifest
        self.parts |= {part.name: part for part in done.parts}
        self.drop += done.drop
        self.lines += ["the root was divided anew by its hybridize list", *done.lines]

    def adopt(self, settled: Settled) -> None:
        """Make the kernel that was installed in the edit the capsule's own."""
        place = self._work / "kernel"
        place.mkdir()
        mine = self._images.get(MODULES)
        kernel = adopt_kernel(self._at, settled.release, place, self.manifest.epoch, old=mine)
        old = next((layer for layer in self.manifest.layers if layer.path == MODULES), None)
        private = old.private if old is not None else self._base.private
        modules = Layer(MODULES, kernel.size, kernel.sha256, kernel.unpacked, private)
        others = tuple(layer for layer in self.manifest.layers if layer.path != MODULES)
        at = self.manifest.layers.index(old) if old is not None else 0
        layers = (*others[:at], modules, *others[at:])
        self.manifest = replace(self.manifest, kernel_release=kernel.release, layers=layers)
        self.parts[KERNEL] = Part(KERNEL, kernel.image)
        self.parts[MODULES] = Part(MODULES, kernel.layer, private)

    def add_edit(self, made: PackedLayer) -> None:
        """Put a layer on top of the others."""
        self._put(made, private=self._base.private, place=0)

    def _put(self, made: PackedLayer, *, private: bool, place: int) -> None:
        assert made.layer is not None
        path = f"layers/{self._number():02}-edit.squashfs"
        acl = path.removesuffix("squashfs") + "acl" if made.acl is not None else None
        layer = Layer(path, made.size, made.sha256, made.unpacked, private, acl)
        layers = self.manifest.layers
        self.manifest = replace(self.manifest, layers=(*layers[:place], layer, *layers[place:]))
        self.parts[path] = Part(path, made.layer, private)
        self._images[path] = Image(made.layer)
        if acl is not None and made.acl is not None:
            self.parts[acl] = Part(acl, made.acl, private)
            self._lists[path] = made.acl

    def _number(self) -> int:
        """The next free number of an edit layer."""
        used = {int(found[1]) for layer in self.manifest.layers if (found := EDIT.fullmatch(layer.path))}
        last = max(used, default=0)
        free = last + 1 if last < 99 else next((one for one in range(1, 100) if one not in used), 0)
        if not free:
            raise CapsulekitError("there are 99 edit layers", hint="umount with --flatten")
        return free

    def flatten(self, most: int) -> None:
        """Make one of each run of edit layers; ``most`` is how many were too many, 0 when it was asked for."""
        before = self.edits()
        for first, count in reversed(_runs(self.manifest.layers)):
            self._flatten_run(first, count)
        self.flattened = before - self.edits() + 1 if self.edits() < before else 0
        if self.flattened:
            why = f" (more than {most} are not kept)" if most else ""
            self.lines.append(f"{before} edit layers became {self.edits()}{why}")

    def _flatten_run(self, first: int, count: int) -> None:
        from capsulekit.edit.flatten import flatten

        layers = self.manifest.layers
        run, under = layers[first : first + count], layers[first + count :]
        for layer in run:
            if layer.path not in self.parts:
                _check_layer(self._images[layer.path], layer)
        place = self._work / f"flat{first}"
        place.mkdir()
        made = flatten(
            [self._images[layer.path] for layer in run],
            [self._acl(layer) for layer in run],
            below=[self._images[layer.path] for layer in under],
            below_lists=[self._acl(layer) for layer in under],
            hybrid=self._hybrid_image,
            work=place / "work",
            layer_out=place / "edit.squashfs",
            acl_out=place / "edit.acl",
        )
        for layer in run:
            for name in (layer.path, layer.acl):
                self.parts.pop(name or "", None)
        self.manifest = replace(self.manifest, layers=(*layers[:first], *under))
        self._put(made, private=any(layer.private for layer in run), place=first)

    def _acl(self, layer: Layer) -> bytes:
        """A layer's ACL list."""
        if layer.acl is None:
            return b""
        made = self._lists.get(layer.path)
        return (made or self._base.file_of(layer.acl, self._work)).read_bytes()

    def initrd(self, settled: Settled) -> str:
        """Make the initrd again where it has to be; why, or ""."""
        from capsulekit.edit.initrd import needs_initrd, rebuild_initrd, stage2_modules

        base, hybrid = self._base, HYBRID in self.parts or (self._base.hybrid and HYBRID not in self.drop)
        if INITRD in self.parts and not settled.touched and not settled.adopted:
            return "the root was divided anew"
        old = base.file_of(INITRD, self._work)
        wanted = stage2_modules(base.file_of("recipe.toml", self._work).read_bytes())
        looked_at = self._at if settled.touched or settled.adopted else None
        why = "the kernel is another one" if settled.adopted else ""
        why = why or needs_initrd(old, settled.release, wanted, looked_at, hybrid=hybrid)
        if why:
            out = self._work / "initrd.img"
            epoch = self.manifest.epoch
            made = rebuild_initrd(out, old, self._at, settled.release, wanted, epoch, hybrid=hybrid)
            self.parts[INITRD] = Part(INITRD, out)
            self.lines += [f"the initrd was made again: {why}", *made.remarks]
        return why


def _check_layer(image: Image, layer: Layer) -> None:
    """Raise TrustError when a layer is not what was signed: what is made of it would be signed anew."""
    digest, left = hashlib.sha256(), layer.size
    with image.path.open("rb") as file:
        file.seek(image.offset)
        while left and (chunk := file.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    if digest.hexdigest() != layer.sha256:
        raise TrustError(f"{layer.path} is not what was signed", hint="capsulekit vnfs verify says more")


def _runs(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """(index of the first, number) of edit layers that follow one another, where there are several."""
    runs: list[tuple[int, int]] = []
    first = None
    for index, layer in enumerate([*layers, None]):
        if layer is not None and EDIT.fullmatch(layer.path):
            first = index if first is None else first
        elif first is not None:
            runs.append((first, index - first))
            first = None
    return [run for run in runs if run[1] > 1]


def _resplit_wanted(base: Base) -> bool:
    if base.store is None or base.stored is None:
        return False
    from provisioner.vnfs.hybridlist import wanted_globs
    from provisioner.vnfs.resplit import needs_resplit

    return needs_resplit(base.store, base.stored, wanted_globs(base.store, base.stored))


def family_of(root: Path) -> str:
    """Whose packages a root has: "deb", "rpm", or "any" for neither."""
    from initramfs_builder.tree import Tree

    from capsulekit.image.system import DATABASES

    tree = Tree(root)
    return next((name for name, paths in DATABASES.items() if any(tree.resolve(path) for path in paths)), "any")


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder to pack in, on the file system of the edit, gone at the end."""
    clear(folder)
    work = folder / WORK
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        clear(folder)


def clear(folder: Path) -> None:
    """Remove what packing has left, also that of a process that was killed."""
    from capsulekit.edit.mounts import unmount_all

    work = folder / WORK
    if work.exists():
        unmount_all(work, lazily=True)
        remove_tree(work)
