"""The road from recipe to capsule, on one screen: lock, fetch, root and kernel, initrd, manifest, sums, signature."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from capsulekit import initrd, kernel
from capsulekit.cache import Cache, Step
from capsulekit.capsule.manifest import Layer, Manifest
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.distro.base import Distro, distro
from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.lock import model as locks
from capsulekit.lock.model import Lock, Package
from capsulekit.progress import Progress
from capsulekit.recipe.load import load_recipe
from capsulekit.recipe.model import Recipe
from capsulekit.rootfs import root
from capsulekit.run import stop_apart
from capsulekit.tools import check_tools
from capsulekit.trust.minisign import SecretKey, load_secret

INITRD_LIMIT = int(3.9 * (1 << 30))


@dataclass(frozen=True)
class BuildResult:
    """A finished capsule: its file, name and identity, bytes on disk, and what the author should know."""

    path: Path
    name: str
    identity: str
    size: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class BuildOptions:
    """What `capsulekit build` was asked for."""

    recipe: Path
    out: Path
    key: Path
    lock: Path | None
    offline: bool
    cache: Path


def build(options: BuildOptions, password: Callable[[], bytes], progress: Progress) -> BuildResult:
    """Build, sign and write one capsule; raises CapsulekitError and then leaves nothing at ``options.out``."""
    recipe = load_recipe(options.recipe)
    if options.offline and options.lock is None:
        beside = options.recipe.with_suffix(".lock")
        raise UsageError(
            "--offline needs a lock",
            hint=f"make one with: capsulekit lock {options.recipe}; then add: --lock {beside}",
        )
    _check_out(options.out)
    signer = load_secret(options.key, password)
    cache = Cache(options.cache)
    maker = distro(recipe.distro, recipe.release, recipe.arch, cache)
    with progress.step("choose packages") as step:
        lock = _lock(recipe, options.lock, maker)
        step.note = f"{sum(len(p) for p in lock.sets.values())} packages"
    with progress.step("fetch packages") as step:
        lacking = _unbuilt(recipe, lock, cache)
        step.reused = not lacking
        maker.fetch(lacking, options.offline)
    parts = _parts(recipe, lock, maker, cache, progress, options.offline)
    with progress.step("pack and sign"):
        return _pack(recipe, lock, parts, signer, options.out)


def _unbuilt(recipe: Recipe, lock: Lock, cache: Cache) -> list[Package]:
    """The packages of parts that have to be made; of the others nothing is needed, so nothing is fetched or checked."""
    stage2 = cache.has_step("initrd", initrd.inputs(recipe, lock))
    have = {
        "rootfs": cache.has_step("rootfs", root.inputs(recipe, lock)),
        "kernel": stage2 and cache.has_step("modules", kernel.inputs(recipe, lock, _likely_merged(recipe))),
        "initrd": stage2,
    }
    return [package for name, made in have.items() if not made for package in lock.sets[name]]


def _likely_merged(recipe: Recipe) -> bool:
    """An installed system of today has its /usr merged; whether this one really has is seen when it is made."""
    return recipe.base == "essential"


def _check_out(out: Path) -> None:
    """What would stop the last step is said before the first."""
    if not out.parent.is_dir():
        raise CapsulekitError(f"there is no folder {out.parent} to write the capsule to", hint="make it first")
    if out.is_dir():
        raise CapsulekitError(f"{out} is a folder", hint=f"name the capsule's file, such as {out}/NAME.vnfs")
    if not os.access(out.parent, os.W_OK):
        raise CapsulekitError(f"the folder {out.parent} cannot be written to", hint="choose another place with -o")


def make_lock(recipe: Recipe, maker: Distro) -> Lock:
    """Choose the packages of a recipe from the archive as it is now."""
    wanted = {"rootfs": recipe.packages, "kernel": [recipe.kernel_package], "initrd": initrd.INITRD_PACKAGES}
    return maker.resolve(wanted, recipe.base)


def _lock(recipe: Recipe, given: Path | None, maker: Distro) -> Lock:
    if given is None:
        return make_lock(recipe, maker)
    lock = locks.load(given)
    if (lock.distro, lock.release, lock.arch) != (recipe.distro, recipe.release, recipe.arch):
        raise CapsulekitError(
            f"{given} locks {lock.distro} {lock.release} {lock.arch}, the recipe wants "
            f"{recipe.distro} {recipe.release} {recipe.arch}",
            hint="make the lock again with capsulekit lock",
        )
    names = {p.name for p in lock.sets["rootfs"]}
    lacking = [p for p in recipe.packages if p.split(":")[0] not in names]
    if recipe.kernel_package.split(":")[0] not in {p.name for p in lock.sets["kernel"]}:
        lacking.append(recipe.kernel_package)
    if lacking:
        raise CapsulekitError(
            f"{given} does not lock the recipe's package {lacking[0]}", hint="make the lock again with capsulekit lock"
        )
    check_tools(lock.tools)
    return lock


@dataclass(frozen=True)
class _Parts:
    rootfs: Step
    modules: Step
    initrd: Step


def _parts(recipe: Recipe, lock: Lock, maker: Distro, cache: Cache, progress: Progress, offline: bool) -> _Parts:
    """The root on one core; kernel, modules and initrd on the other."""

    def timed(name: str, make: Callable[[], Step]) -> Step:
        with progress.step(name) as record:
            made = make()
            record.reused = made.reused
            return made

    likely = _likely_merged(recipe)
    with ThreadPoolExecutor(2) as pool:
        rootfs = pool.submit(timed, "root file system", lambda: root.rootfs_step(recipe, lock, maker, cache))
        modules = pool.submit(
            timed, "kernel and modules", lambda: kernel.modules_step(recipe, lock, maker, cache, likely)
        )
        stage2 = pool.submit(timed, "stage 2", lambda: initrd.initrd_step(recipe, lock, maker, cache))
        _first_failure(rootfs, modules, stage2)
        parts = _Parts(rootfs.result(), modules.result(), stage2.result())
    merged = root.facts(parts.rootfs).merged_usr
    if merged != likely:
        maker.fetch(lock.sets["kernel"], offline)
        again = timed("modules, unmerged /usr", lambda: kernel.modules_step(recipe, lock, maker, cache, merged))
        parts = _Parts(parts.rootfs, again, parts.initrd)
    return parts


def _first_failure(*jobs: Future[Step]) -> None:
    """Wait for all; when one fails, or on Ctrl-C, stop the others and raise that."""
    try:
        for job in as_completed(jobs):
            job.result()
    except BaseException:
        for job in jobs:
            job.cancel()
        stop_apart()
        raise


def _pack(recipe: Recipe, lock: Lock, parts: _Parts, signer: SecretKey, out: Path) -> BuildResult:
    facts = root.facts(parts.rootfs)
    acl = f"layers/{root.ACL}" if facts.acls else None
    layers = (
        _layer(parts.modules, kernel.LAYER, int((parts.modules.folder / "unpacked").read_text()), None),
        _layer(parts.rootfs, root.LAYER, facts.unpacked, acl),
    )
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        arch=recipe.arch,
        distro=recipe.distro,
        release=recipe.release,
        epoch=lock.epoch,
        init=recipe.init,
        cmdline=recipe.cmdline,
        recipe_digest=recipe.digest,
        kernel_release=(parts.modules.folder / "release").read_text(),
        layers=layers,
        hybridize=recipe.hybridize,
        provision=tuple(f"provision/init/{s.name}" for s in recipe.provision),
    )
    members = [
        Member("recipe.toml", recipe.text.encode()),
        Member("capsule.lock", lock.dumps().encode()),
        Member("hybridize", "".join(f"{glob}\n" for glob in recipe.hybridize).encode()),
        *(Member(f"provision/init/{s.name}", s.data) for s in recipe.provision),
        Member("boot/vmlinuz", parts.modules.folder / "vmlinuz"),
        Member("boot/initrd.img", parts.initrd.folder / "initrd.img"),
        Member(f"layers/{kernel.LAYER}", parts.modules.folder / kernel.LAYER),
        Member(f"layers/{root.LAYER}", parts.rootfs.folder / root.LAYER),
    ]
    if acl:
        members.append(Member(acl, parts.rootfs.folder / root.ACL))
    for member in members:
        if isinstance(member.source, Path) and member.source.stat().st_size > INITRD_LIMIT:
            raise CapsulekitError(
                f"{member.name} is {member.source.stat().st_size} bytes; the format ends at 3.9 GiB",
                hint="install less, or split the capsule",
            )
    identity = write_capsule(out, manifest, members, signer)
    warnings = tuple(f"the normaliser's row {glob} matched nothing" for glob in facts.unmatched)
    return BuildResult(out, recipe.full_name, identity, out.stat().st_size, warnings)


def _layer(step: Step, name: str, unpacked: int, acl: str | None) -> Layer:
    path = step.folder / name
    return Layer(f"layers/{name}", path.stat().st_size, step.digest(name), unpacked, acl=acl)


__all__ = ["BuildOptions", "BuildResult", "build", "make_lock"]
