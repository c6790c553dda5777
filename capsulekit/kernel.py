"""The kernel step: image and modules taken out of their package, which is never installed (no mkinitramfs run)."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from capsulekit.cache import Cache, Step, code_identity
from capsulekit.distro.base import Distro
from capsulekit.errors import CapsulekitError
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.lock.model import Lock, Package
from capsulekit.recipe.model import Recipe
from capsulekit.run import run

LAYER = "modules.squashfs"


# What RPM kernels keep beside their modules and a node does not read there: the image is the capsule's boot/vmlinuz.
NOT_MODULES = ("vmlinuz", ".vmlinuz.hmac", "System.map", "symvers.gz", "symvers.xz", "symvers.zst")

# What mounts the network layer of a hybrid capsule; stage 2 loads it from the modules layer.
HYBRID_MODULES = ("nfs", "nfsv4")


@dataclass(frozen=True)
class KernelTree:
    """An unpacked kernel: ``release`` as uname -r says it, the folder of its modules, the image.

    ``firmware`` is the folder of the firmware that came with it, if any.
    """

    root: Path
    release: str
    modules: Path
    image: Path
    firmware: Path | None


def unpack_kernel(packages: Sequence[Package], distro: Distro, folder: Path) -> KernelTree:
    """Unpack kernel packages below ``folder`` and index their modules; raises CapsulekitError.

    The image lies in boot/ (Debian) or among its modules (Fedora and its kin). Whatever way the packages spell it, in
    ``folder`` all is below usr/lib.
    """
    for package in packages:
        distro.unpack(package, folder)
    names = [package.name for package in packages]
    return kernel_tree(folder, names, "name one image package in the recipe's [kernel] package")


def kernel_tree(folder: Path, names: Sequence[str], hint: str) -> KernelTree:
    """The kernel of the packages ``names``, unpacked below ``folder``; puts it in order and indexes its modules.

    Raises CapsulekitError, with ``hint`` where there is not one kernel, also when a link stands where its folders are:
    it would lead out of the tree.
    """
    for place in ("usr", "usr/lib", "boot", "lib/modules", "usr/lib/modules", "lib/firmware", "usr/lib/firmware"):
        if (folder / place).is_symlink():
            raise CapsulekitError(f"the kernel packages have a link at /{place}: {', '.join(names)}")
    if (folder / "lib").is_dir() and not (folder / "lib").is_symlink():
        _merge(folder / "lib", folder / "usr/lib")
    if not (folder / "lib").is_symlink():
        (folder / "lib").symlink_to("usr/lib")  # where depmod looks
    if str((folder / "lib").readlink()) != "usr/lib":
        raise CapsulekitError(f"the kernel packages have a link at /lib: {', '.join(names)}")
    images = {path.name.removeprefix("vmlinuz-"): path for path in sorted((folder / "boot").glob("vmlinuz-*"))}
    images |= {path.parent.name: path for path in sorted((folder / "usr/lib/modules").glob("*/vmlinuz"))}
    if len(images) != 1:
        raise CapsulekitError(
            f"the kernel packages bring {len(images)} kernels instead of one: {', '.join(names) or 'none'}", hint=hint
        )
    ((release, image),) = images.items()
    modules, firmware = folder / "usr/lib/modules" / release, folder / "usr/lib/firmware"
    if not modules.is_dir() or modules.is_symlink():
        raise CapsulekitError(f"the kernel {release} brings no modules: {', '.join(names)}", hint=hint)
    if not stat.S_ISREG(image.lstat().st_mode):
        raise CapsulekitError(f"the image of kernel {release} is no file: {', '.join(names)}")
    depmod(folder, release)
    return KernelTree(folder, release, modules, image, firmware if firmware.is_dir() else None)


def _merge(source: Path, target: Path) -> None:
    """Move a folder's content into another one, which may hold folders of the same names."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir() and not path.is_symlink():
            _merge(path, target / path.name)
        else:
            path.replace(target / path.name)
    source.rmdir()


def depmod_version() -> str:
    """What depmod says of its version."""
    return run(["depmod", "--version"], purpose="index kernel modules")


def depmod(root: Path, release: str, config: Path | None = None) -> None:
    """Index the modules in ``root``/lib/modules; ``config`` is a folder to read instead of this host's depmod.d."""
    chosen: list[str | Path] = ["-C", config] if config else []
    run(["depmod", *chosen, "-b", root, release], purpose="index kernel modules")


def inputs(recipe: Recipe, lock: Lock, merged: bool) -> dict[str, Any]:
    """Everything that decides the bytes of the kernel's image and modules layer."""
    return {
        "packages": [p.sha256 for p in lock.sets["kernel"]],
        "keep": _kept(recipe),
        "merged": merged,
        "epoch": lock.epoch,
        "tools": lock.tools,
        "level": recipe.level,
        "code": code_identity(
            "capsulekit.kernel",
            "capsulekit.image",
            "capsulekit.apt.deb",
            "capsulekit.rpm",
            "capsulekit.distro",
            "initramfs_builder",
        ),
    }


def modules_step(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache, merged: bool) -> Step:
    """Make (or reuse) the modules layer and the kernel image: ``modules.squashfs``, ``vmlinuz``, ``release``."""

    def make(out: Path) -> None:
        with cache.scratch() as scratch:
            tree = unpack_kernel(lock.sets["kernel"], distro, scratch)
            if recipe.kernel_modules:
                _keep_only(tree, _kept(recipe))
            (out / "vmlinuz").write_bytes(tree.image.read_bytes())
            (out / "release").write_text(tree.release)
            prefix = "usr/lib" if merged else "lib"
            folders = {f"{prefix}/modules/{tree.release}": tree.modules}
            if tree.firmware:
                folders[f"{prefix}/firmware"] = tree.firmware
            unpacked = write_modules(out / LAYER, folders, lock.epoch, recipe.level)
            (out / "unpacked").write_text(str(unpacked))

    return cache.step("modules", inputs(recipe, lock, merged), make)


def _kept(recipe: Recipe) -> tuple[str, ...]:
    """The modules a recipe asks for; none means all."""
    more = HYBRID_MODULES if recipe.kernel_modules and recipe.hybridize else ()
    return (*recipe.kernel_modules, *more)


def _keep_only(tree: KernelTree, names: Sequence[str]) -> None:
    """Drop every module that ``names`` do not need, and index again."""
    from initramfs_builder.modules import ModuleTree

    kept = {tree.modules / file for file in ModuleTree(tree.root, tree.release).closure(names)}
    for path in tree.modules.rglob("*.ko*"):
        if path not in kept:
            path.unlink()
    depmod(tree.root, tree.release)


def write_modules(out: Path, folders: Mapping[str, Path], epoch: int, level: int) -> int:
    """Write a modules layer: folders of this host, each under its path in the root; the bytes of its files."""
    with layer_from_tar(out, epoch, level) as layer:
        return _tar(folders, epoch, layer)


def _tar(folders: Mapping[str, Path], epoch: int, sink: IO[bytes]) -> int:
    """Write folders as a tar, each under its path, all root's, times ``epoch``, sorted; the bytes of their files."""
    total = 0
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        above = {str(parent) for path in folders for parent in (Path(path), *Path(path).parents)} - {"."}
        for parent in sorted(above):
            tar.addfile(_info(parent, 0o755, epoch, tarfile.DIRTYPE))
        for prefix, folder in sorted(folders.items()):
            total += sum(_add(tar, path, f"{prefix}/{path.relative_to(folder)}", epoch) for path in _walk(folder))
    return total


def _add(tar: tarfile.TarFile, path: Path, name: str, epoch: int) -> int:
    """Add one path; the bytes of a file."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        tar.addfile(_info(name, 0o755, epoch, tarfile.DIRTYPE))
        return 0
    if stat.S_ISLNK(status.st_mode):
        info = _info(name, 0o777, epoch, tarfile.SYMTYPE)
        info.linkname = str(path.readlink())
        tar.addfile(info)
        return 0
    info = _info(name, 0o644, epoch, tarfile.REGTYPE)
    info.size = status.st_size
    with path.open("rb") as data:
        tar.addfile(info, data)
    return info.size


def _walk(folder: Path) -> Iterator[Path]:
    for base, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(base) / name
            # The build and source links point into headers a node does not have.
            headers = name in ("build", "source") and path.is_symlink()
            if not headers and not (Path(base) == folder and name in NOT_MODULES):
                yield path


def _info(name: str, mode: int, epoch: int, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.type = mode, epoch, kind
    return info


__all__ = ["LAYER", "KernelTree", "kernel_tree", "modules_step", "unpack_kernel", "write_modules"]
