"""The road from recipe to capsule, on one screen: lock, fetch, root and kernel, initrd, manifest, sums, signature."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit import initrd, kernel
from capsulekit.cache import Cache, Step, code_identity
from capsulekit.capsule.manifest import HYBRID, Layer, Manifest
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.distro.base import Distro, distro
from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.lock import model as locks
from capsulekit.lock.model import Lock, Package, Request
from capsulekit.metadata.provenance import provenance
from capsulekit.metadata.ram import check_ram
from capsulekit.metadata.sbom import sbom
from capsulekit.progress import Progress
from capsulekit.recipe.load import load_recipe
from capsulekit.recipe.model import Recipe
from capsulekit.rootfs import root
from capsulekit.rootfs.normalise import VERSION as NORMALISER
from capsulekit.rootfs.scripts import check_scripts
from capsulekit.run import stop_apart
from capsulekit.tools import check_tools
from capsulekit.trust.minisign import load_secret

PAPERS = ("sbom.cdx.json", "provenance.json")
INITRD_LIMIT = int(3.9 * (1 << 30))


@dataclass(frozen=True)
class BuildResult:
    """A finished capsule: its file, name and identity, bytes on disk, and what the author should know.

    ``hybrid`` says per hybridize glob what stays out of the nodes' RAM.
    """

    path: Path
    name: str
    identity: str
    size: int
    warnings: tuple[str, ...]
    hybrid: tuple[str, ...]


@dataclass(frozen=True)
class BuildOptions:
    """What `capsulekit build` was asked for; ``stop_after`` is --break's step ("" for none)."""

    recipe: Path
    out: Path
    key: Path
    lock: Path | None
    offline: bool
    cache: Path
    release: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    stop_after: str = ""


@dataclass(frozen=True)
class Made:
    """Everything of a capsule but its signature: the manifest, the other members, and what the author should know."""

    manifest: Manifest
    members: tuple[Member, ...]
    warnings: tuple[str, ...]
    hybrid: tuple[str, ...]


def build(options: BuildOptions, password: Callable[[], bytes], progress: Progress) -> BuildResult:
    """Build, sign and write one capsule; raises CapsulekitError and then leaves nothing at ``options.out``."""
    recipe = load_recipe(options.recipe, options.variables, options.release)
    _check_options(recipe, options)
    warnings = check_scripts((*recipe.scripts, *(script for _, script in recipe.provision)))
    signer = load_secret(options.key, password)
    cache = Cache(options.cache)
    maker = distro(recipe.distro, recipe.release, recipe.arch, cache)
    with progress.step("choose packages") as step:
        lock = make_lock(recipe, maker) if options.lock is None else given_lock(recipe, options.lock, maker)
        step.note = f"{sum(len(p) for p in lock.sets.values())} packages"
    made = make_parts(recipe, lock, maker, cache, progress, options.offline, options.stop_after)
    with progress.step("pack and sign"):
        identity = write_capsule(options.out, made.manifest, made.members, signer)
    size = options.out.stat().st_size
    return BuildResult(options.out, recipe.full_name, identity, size, (*warnings, *made.warnings), made.hybrid)


def make_parts(
    recipe: Recipe, lock: Lock, maker: Distro, cache: Cache, progress: Progress, offline: bool, stop_after: str = ""
) -> Made:
    """Fetch what lacks, make every part, and describe them; the same recipe and lock always give the same members."""
    fetch_packages(_unbuilt(recipe, lock, maker, cache), lock, maker, progress, offline)
    parts = _parts(recipe, lock, maker, cache, progress, offline, stop_after)
    return _describe(recipe, lock, maker, cache, parts)


def fetch_packages(lacking: list[Package], lock: Lock, maker: Distro, progress: Progress, offline: bool) -> None:
    """Bring packages into the cache, with one bar for all of them; ``offline`` refuses what is not there."""
    with progress.step("fetch packages") as step:
        step.reused = not lacking
        step.total = sum(p.size for p in lacking)
        maker.fetch(lock, lacking, offline, step.advance)


def _unbuilt(recipe: Recipe, lock: Lock, maker: Distro, cache: Cache) -> list[Package]:
    """The packages of parts that have to be made; of the others nothing is needed, so nothing is fetched or checked."""
    packages = root.unbuilt_packages(recipe, lock, maker, cache)
    stage2 = cache.has_step("initrd", initrd.inputs(recipe, lock))
    if not stage2:
        packages += lock.sets["initrd"]
    if not stage2 or not cache.has_step("modules", kernel.inputs(recipe, lock, _likely_merged(recipe))):
        packages += lock.sets["kernel"]
    return packages


def _likely_merged(recipe: Recipe) -> bool:
    """An installed system of today has its /usr merged; whether this one really has is seen when it is made."""
    return recipe.base == "essential"


def _check_options(recipe: Recipe, options: BuildOptions) -> None:
    """What would stop the last step is said before the first."""
    out = options.out
    if options.offline and options.lock is None:
        beside = options.recipe.with_suffix(".lock")
        raise UsageError(
            "--offline needs a lock",
            hint=f"make one with: capsulekit lock {options.recipe}; then add: --lock {beside}",
        )
    if options.stop_after and options.stop_after not in (known := root.break_points(recipe)):
        raise UsageError(f"there is no step {options.stop_after!r} to stop after", hint="known: " + ", ".join(known))
    if not out.parent.is_dir():
        raise CapsulekitError(f"there is no folder {out.parent} to write the capsule to", hint="make it first")
    if out.is_dir():
        raise CapsulekitError(f"{out} is a folder", hint=f"name the capsule's file, such as {out}/NAME.vnfs")
    if not os.access(out.parent, os.W_OK):
        raise CapsulekitError(f"the folder {out.parent} cannot be written to", hint="choose another place with -o")


def request_of(recipe: Recipe, maker: Distro) -> Request:
    """What the recipe asks of its distribution."""
    kernel_packages = (recipe.kernel_package, *recipe.kernel_extra)
    stage2 = (*maker.stage2_packages, *(maker.hybrid_packages if recipe.hybridize else ()))
    return Request(recipe.base, recipe.stages, kernel_packages, stage2)


def make_lock(recipe: Recipe, maker: Distro) -> Lock:
    """Choose the packages of a recipe from the archive as it is now."""
    return maker.resolve(request_of(recipe, maker))


def given_lock(recipe: Recipe, path: Path, maker: Distro) -> Lock:
    """The lock at ``path``; raises CapsulekitError when it is not this recipe's, or not for this machine's tools."""
    lock = locks.load(path)
    if (lock.distro, lock.release, lock.arch) != (recipe.distro, recipe.release, recipe.arch):
        raise CapsulekitError(
            f"{path} locks {lock.distro} {lock.release} {lock.arch}, the recipe wants "
            f"{recipe.distro} {recipe.release} {recipe.arch}",
            hint="make the lock again with capsulekit lock",
        )
    if lock.request != request_of(recipe, maker).digest:
        names = {p.name for packages in lock.sets.values() for p in packages}
        lacking = [p for p in (*recipe.packages, recipe.kernel_package) if p.split(":")[0] not in names]
        why = f"does not lock the recipe's package {lacking[0]}" if lacking else "was made for other packages"
        raise CapsulekitError(f"{path} {why}", hint="make the lock again with capsulekit lock")
    if lock.normaliser != NORMALISER:
        raise CapsulekitError(
            f"{path} was made for version {lock.normaliser} of the normaliser, this program has {NORMALISER}",
            hint="make the lock again with capsulekit lock, or use the capsulekit it was made with",
        )
    check_tools(lock.tools, maker)
    return lock


@dataclass(frozen=True)
class _Parts:
    rootfs: Step
    modules: Step
    initrd: Step


def _parts(
    recipe: Recipe, lock: Lock, maker: Distro, cache: Cache, progress: Progress, offline: bool, stop_after: str
) -> _Parts:
    """The root on one core; kernel, modules and initrd on the other."""

    def timed(name: str, make: Callable[[], Step]) -> Step:
        with progress.step(name) as record:
            made = make()
            record.reused = made.reused
            return made

    def make_root() -> Step:
        return root.rootfs_step(recipe, lock, maker, cache, progress, stop_after)

    likely = _likely_merged(recipe)
    with ThreadPoolExecutor(2) as pool:
        rootfs = pool.submit(timed, "root file system", make_root)
        modules = pool.submit(
            timed, "kernel and modules", lambda: kernel.modules_step(recipe, lock, maker, cache, likely)
        )
        stage2 = pool.submit(timed, "stage 2", lambda: initrd.initrd_step(recipe, lock, maker, cache))
        _first_failure(rootfs, modules, stage2)
        parts = _Parts(rootfs.result(), modules.result(), stage2.result())
    merged = root.facts(parts.rootfs).merged_usr
    if merged != likely:
        fetch_packages(list(lock.sets["kernel"]), lock, maker, progress, offline)
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


def _describe(recipe: Recipe, lock: Lock, maker: Distro, cache: Cache, parts: _Parts) -> Made:
    facts = root.facts(parts.rootfs)
    members = _members(recipe, lock, maker, cache, parts, facts)
    layers = [_layer(parts.modules, kernel.LAYER, int((parts.modules.folder / "unpacked").read_text()), None)]
    layers.append(_layer(parts.rootfs, root.LAYER, facts.unpacked, f"layers/{root.ACL}" if facts.acls else None))
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
        layers=tuple(layers),
        hybridize=recipe.hybridize,
        provision=tuple(f"provision/{state}/{s.name}" for state, s in recipe.provision),
    )
    if recipe.ram_max is not None:
        check_ram(recipe.ram_max, [(layer.path, layer.size) for layer in layers], parts.rootfs.folder / root.LAYER)
    for member in members:
        if isinstance(member.source, Path) and member.source.stat().st_size > INITRD_LIMIT and member.name != HYBRID:
            raise CapsulekitError(
                f"{member.name} is {member.source.stat().st_size} bytes; the format ends at 3.9 GiB",
                hint="install less, or split the capsule",
            )
    warnings = [f"the normaliser's row {glob} matched nothing" for glob in facts.unmatched]
    warnings += (parts.initrd.folder / initrd.REMARKS).read_text().splitlines()
    return Made(manifest, tuple(members), tuple(warnings), facts.hybrid)


def _members(
    recipe: Recipe, lock: Lock, maker: Distro, cache: Cache, parts: _Parts, facts: root.RootFacts
) -> list[Member]:
    boot = {
        "boot/vmlinuz": (parts.modules, "vmlinuz"),
        "boot/initrd.img": (parts.initrd, "initrd.img"),
        f"layers/{kernel.LAYER}": (parts.modules, kernel.LAYER),
        f"layers/{root.LAYER}": (parts.rootfs, root.LAYER),
    }
    if facts.acls:
        boot[f"layers/{root.ACL}"] = (parts.rootfs, root.ACL)
    if (parts.rootfs.folder / root.HYBRID_LAYER).exists():
        boot[HYBRID] = (parts.rootfs, root.HYBRID_LAYER)
    sums = {name: (step.size(file), step.digest(file)) for name, (step, file) in boot.items()}
    papers = _papers(recipe, lock, maker, cache, facts, {name: digest for name, (_, digest) in sums.items()})
    texts = {
        "recipe.toml": recipe.text.encode(),
        "capsule.lock": lock.dumps().encode(),
        **{name: (papers.folder / name).read_bytes() for name in PAPERS},
        "hybridize": "".join(f"{glob}\n" for glob in recipe.hybridize).encode(),
        **{f"provision/{state}/{s.name}": s.data for state, s in recipe.provision},
    }
    if recipe.configure:
        texts["configure.toml"] = recipe.configure
    files = [Member(name, step.folder / file, sums[name]) for name, (step, file) in boot.items()]
    return [*(Member(name, data) for name, data in texts.items()), *files]


def _papers(
    recipe: Recipe, lock: Lock, maker: Distro, cache: Cache, facts: root.RootFacts, digests: Mapping[str, str]
) -> Step:
    """The bill of materials and the provenance, made (or reused) from what is known of the parts."""
    owners = {**facts.owners, **{f"file {f.path}": [f.path.lstrip("/")] for f in recipe.files}}
    inputs = {
        "recipe": recipe.digest,
        "lock": lock.digest,
        "licences": dict(facts.licences),
        "owners": {owner: list(paths) for owner, paths in owners.items()},
        "subjects": dict(digests),
        "purl": maker.purl,
        "code": code_identity("capsulekit.metadata", "capsulekit.rootfs"),
    }

    def make(out: Path) -> None:
        (out / "sbom.cdx.json").write_bytes(sbom(recipe, lock, maker.purl, facts.licences, owners))
        (out / "provenance.json").write_bytes(provenance(recipe, lock, maker.purl, digests))

    return cache.step("papers", inputs, make)


def _layer(step: Step, name: str, unpacked: int, acl: str | None) -> Layer:
    return Layer(f"layers/{name}", step.size(name), step.digest(name), unpacked, acl=acl)


__all__ = ["BuildOptions", "BuildResult", "Made", "build", "make_lock", "make_parts"]
