"""`pack`: a tree made elsewhere becomes a capsule, by the same normaliser, layers and signature as a build.

The tree is only read. Its lock names no packages: what a packed capsule is made of is known by the digest of its tree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

from capsulekit.cache import Cache
from capsulekit.capsule.manifest import NAME, Layer, Manifest
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import sha256_file
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.image.survey import Survey, survey
from capsulekit.image.system import System, identify
from capsulekit.image.tree import literal, tar_of
from capsulekit.lock.model import MAX_EPOCH, SETS, Lock
from capsulekit.progress import Progress
from capsulekit.recipe.flat import flatten
from capsulekit.recipe.model import Recipe
from capsulekit.recipe.settings import PACKED
from capsulekit.rootfs.normalise import VERSION, Normaliser
from capsulekit.rootfs.root import acl_text
from capsulekit.tools import tools_of_all
from capsulekit.trust.minisign import load_secret

# Not even read: the kernel has its own place in a capsule, the others are what the normaliser takes out whole.
LEFT_OUT = ("boot", "dev", "run", "tmp", "var/tmp")
STAGE2_MODULES = ("loop", "squashfs", "overlay")
ROOTFS, MODULES = "layers/rootfs.squashfs", "layers/modules.squashfs"


@dataclass(frozen=True)
class Carried:
    """What goes into the capsule beside the tree: hybridize globs, and small members such as provision scripts."""

    hybridize: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()


@dataclass(frozen=True)
class PackOptions:
    """What `capsulekit pack` was asked for; what is None is taken from the tree. ``live``: "/" may be packed."""

    root: Path
    out: Path | None
    name: str | None
    version: str
    kernel: str | None
    init: str
    cmdline: str
    cache: Path
    live: bool
    carried: Carried = Carried()


@dataclass(frozen=True)
class Plan:
    """What is going to be packed: the tree, what it holds, the recipe that says so, and where the capsule goes."""

    root: Path
    out: Path
    system: System
    survey: Survey
    recipe: Recipe
    epoch: int
    live: bool
    carried: Carried

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the author should know."""
        mounts = ", ".join(f"/{path}" for path in self.survey.mounts)
        told = (f"not packed, because it is mounted there and no part of the tree: {mounts}",) if mounts else ()
        return (*told, "the running system is packed while it changes") if self.live else told


@dataclass(frozen=True)
class PackResult:
    """A finished capsule: its file, name and identity, bytes on disk, and what the author should know."""

    path: Path
    name: str
    identity: str
    size: int
    warnings: tuple[str, ...]


def plan_pack(options: PackOptions) -> Plan:
    """Look the tree over; raises CapsulekitError, or UsageError, naming all that stands in the way. Changes nothing."""
    if not options.root.is_dir():
        raise CapsulekitError(f"{options.root} is not a folder", hint="name the root folder of a tree")
    root = options.root.resolve()
    live = root.samefile("/")
    if live and not options.live:
        raise UsageError(
            "/ is the running system, which changes while it is packed", hint="pack it all the same: --yes"
        )
    system = identify(root, options.init, options.kernel)
    recipe = _recipe(options, system)
    seen = survey(root, LEFT_OUT)
    for path in (system.init_file, system.kernel.modules):
        if any(path.startswith(f"{mount}/") for mount in seen.mounts):
            raise CapsulekitError(f"/{path} lies on a file system of its own, which is not packed", hint="pack a copy")
    out = options.out or Path(f"{recipe.full_name}.vnfs")
    _check_places(root, seen, {"-o": out.parent.resolve(), "--cache-dir": options.cache.resolve()}, out)
    plan = Plan(root, out, system, seen, recipe, _epoch(seen), live, options.carried)
    _manifest(plan, (Layer(ROOTFS, 0, recipe.digest, 0),)).dumps()  # what the format refuses is said before the work
    return plan


def pack(options: PackOptions, key: Path, password: Callable[[], bytes], progress: Progress) -> PackResult:
    """Pack, sign and write one capsule; raises CapsulekitError and then leaves nothing at the capsule's place."""
    with progress.step("look at the tree") as step:
        plan = plan_pack(options)
        step.note = f"{plan.survey.paths} paths, {plan.survey.size / 1e6:.0f} MB"
    signer = load_secret(key, password)
    with Cache(options.cache).scratch("pack") as work:
        manifest, members, remarks = _make(plan, work, progress)
        with progress.step("pack and sign"):
            identity = write_capsule(plan.out, manifest, members, signer)
    return PackResult(plan.out, plan.recipe.full_name, identity, plan.out.stat().st_size, (*plan.warnings, *remarks))


def _recipe(options: PackOptions, system: System) -> Recipe:
    """A recipe that tells what the capsule is; it cannot be built again."""
    name = options.name or f"{system.distro}-{system.release}"
    for what, text in (("--name", name), ("--version", options.version)):
        if not NAME.fullmatch(text):
            raise UsageError(f"{what} can't be {text!r}", hint="letters, digits, '.', '_' and '-' make a name")
    if not options.cmdline.isprintable():
        raise UsageError("--cmdline must be one line of kernel arguments")
    recipe = Recipe(
        source=str(options.root),
        text="",
        name=name,
        version=options.version,
        distro=system.distro,
        release=system.release,
        arch=system.arch,
        init=options.init,
        cmdline=options.cmdline,
        stages=(),
        kernel_package=PACKED,
        kernel_modules=(),
        stage2_modules=STAGE2_MODULES,
        base=PACKED,
    )
    return replace(recipe, text=flatten(recipe))


def _epoch(seen: Survey) -> int:
    """The capsule's time: SOURCE_DATE_EPOCH where it is set, else that of the newest path of the tree."""
    said = os.environ.get("SOURCE_DATE_EPOCH") or str(min(seen.newest, MAX_EPOCH))
    if not said.isdecimal() or int(said) > MAX_EPOCH:
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, not {said!r}")
    return int(said)


def _check_places(root: Path, seen: Survey, places: dict[str, Path], out: Path) -> None:
    """What would stop the last step is said before the first; and the tree is never written to."""
    if not out.parent.is_dir():
        raise CapsulekitError(f"there is no folder {out.parent} to write the capsule to", hint="make it first")
    if out.is_dir():
        raise CapsulekitError(f"{out} is a folder", hint=f"name the capsule's file, such as {out}/NAME.vnfs")
    if not os.access(out.parent, os.W_OK):
        raise CapsulekitError(f"the folder {out.parent} cannot be written to", hint="choose another place with -o")
    outside = [root / path for path in (*seen.mounts, *LEFT_OUT)]
    for option, place in places.items():
        if place.is_relative_to(root) and not any(place.is_relative_to(other) for other in outside):
            raise CapsulekitError(
                f"{place} lies in the tree that is packed", hint=f"choose a place outside of it with {option}"
            )


def _make(plan: Plan, work: Path, progress: Progress) -> tuple[Manifest, list[Member], tuple[str, ...]]:
    """All of a capsule but its signature, and remarks for the author."""
    digest = hashlib.sha256()
    with progress.step("stage 2"):  # first: it may lack a program
        initrd, remarks = _stage2(plan, work)
    with progress.step("root file system"):
        rootfs = _rootfs(plan, work, digest.update)
    with progress.step("kernel and modules"):
        modules = _modules(plan, work, digest.update)
    members = [
        Member("recipe.toml", plan.recipe.text.encode()),
        Member("capsule.lock", _lock(plan, digest.hexdigest()).dumps().encode()),
        Member("boot/vmlinuz", plan.system.kernel.image),
        Member("boot/initrd.img", initrd),
        *_layer_members(work, (modules, rootfs)),
        *plan.carried.members,
    ]
    return _manifest(plan, (modules, rootfs)), members, remarks


def _manifest(plan: Plan, layers: tuple[Layer, ...]) -> Manifest:
    recipe = plan.recipe
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        arch=recipe.arch,
        distro=recipe.distro,
        release=recipe.release,
        epoch=plan.epoch,
        init=recipe.init,
        cmdline=recipe.cmdline,
        recipe_digest=recipe.digest,
        kernel_release=plan.system.kernel.release,
        layers=layers,
        hybridize=plan.carried.hybridize,
        provision=tuple(m.name for m in plan.carried.members if m.name.startswith("provision/")),
    )


def _lock(plan: Plan, digest: str) -> Lock:
    """A lock without packages; ``digest`` is that of the tree as it is in the layers."""
    return Lock(
        distro=plan.system.distro,
        release=plan.system.release,
        arch=plan.system.arch,
        epoch=plan.epoch,
        request=digest,
        normaliser=VERSION,
        archives=(),
        keys=(),
        sets=dict.fromkeys(SETS, ()),
        tools=tools_of_all(),
    )


def _rootfs(plan: Plan, work: Path, summed: Callable[[bytes], None]) -> Layer:
    """The layer of all but the kernel and its modules."""
    mounts = [literal(path) for path in plan.survey.mounts]
    inside = [f"{path}/*" for path in (*LEFT_OUT, *mounts)]
    # A file that is mounted over another shows what is no part of the tree; a folder stays as the place to mount at.
    files = [literal(path) for path in plan.survey.mounts if not (plan.root / path).is_dir()]
    leave_out = [*inside, *files, literal(plan.system.kernel.modules)]
    return _layer(plan, work, ROOTFS, summed, names=["."], alone=[], leave_out=leave_out)


def _modules(plan: Plan, work: Path, summed: Callable[[bytes], None]) -> Layer:
    """The layer of the kernel's modules; the folders above them are as they are in the root, which it covers."""
    folder = plan.system.kernel.modules
    above = [str(path) for path in reversed(Path(folder).parents[:-1])]
    leave_out = [literal(f"{folder}/vmlinuz")]  # it is the capsule's boot/vmlinuz
    return _layer(plan, work, MODULES, summed, names=[folder], alone=above, leave_out=leave_out)


def _layer(
    plan: Plan,
    work: Path,
    path: str,
    summed: Callable[[bytes], None],
    *,
    names: list[str],
    alone: list[str],
    leave_out: list[str],
) -> Layer:
    """One layer of the tree in ``work``, with its list of ACLs where it has any."""
    out = work / Path(path).name
    normaliser = Normaliser(plan.epoch, plan.recipe.init, plan.system.family)
    with (
        tar_of(plan.root, names, work / "tar.log", alone=alone, leave_out=leave_out, changing=plan.live) as tar,
        layer_from_tar(out, plan.epoch, plan.recipe.level) as layer,
    ):
        ledger = normaliser.stream(tar, cast(IO[bytes], _Summed(layer, summed)))
    acl = f"{path.removesuffix('.squashfs')}.acl" if ledger.acls else None
    if acl:
        (work / Path(acl).name).write_bytes(acl_text(ledger.acls))
    return Layer(path, out.stat().st_size, sha256_file(out), ledger.unpacked, acl=acl)


class _Summed:
    """A sink that sums what passes."""

    def __init__(self, sink: IO[bytes], summed: Callable[[bytes], None]) -> None:
        self._sink, self._summed = sink, summed

    def write(self, data: bytes, /) -> int:
        self._summed(data)
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()


def _stage2(plan: Plan, work: Path) -> tuple[Path, tuple[str, ...]]:
    """The initrd, and remarks for the author."""
    from initramfs_builder.stage2 import assemble_stage2

    image = work / "initrd.img"
    with image.open("wb") as out:
        made = assemble_stage2(out, plan.root, plan.root, plan.system.kernel.release, STAGE2_MODULES, plan.epoch)
    return image, made.remarks


def _layer_members(work: Path, layers: Iterable[Layer]) -> Iterable[Member]:
    for layer in layers:
        yield Member(layer.path, work / Path(layer.path).name, (layer.size, layer.sha256))
        if layer.acl:
            yield Member(layer.acl, work / Path(layer.acl).name)
