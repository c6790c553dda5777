"""The kernel step: image and modules taken out of their package, which is never installed (no mkinitramfs run)."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class KernelTree:
    """An unpacked kernel: ``release`` as uname -r says it, the folder of its modules, the image."""

    root: Path
    release: str
    modules: Path
    image: Path


def unpack_kernel(packages: Sequence[Package], distro: Distro, folder: Path) -> KernelTree:
    """Unpack kernel packages below ``folder`` and index their modules; raises CapsulekitError."""
    for package in packages:
        distro.unpack(package, folder)
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        names = ", ".join(p.name for p in packages) or "none"
        raise CapsulekitError(
            f"the kernel packages bring {len(images)} kernels instead of one: {names}",
            hint="name one image package in the recipe's [kernel] package",
        )
    release = images[0].name.removeprefix("vmlinuz-")
    for prefix in ("usr/lib/modules", "lib/modules"):
        if (modules := folder / prefix / release).is_dir():
            if prefix == "lib/modules":
                (folder / "usr/lib").mkdir(parents=True, exist_ok=True)
                shutil.move(folder / "lib/modules", folder / "usr/lib/modules")
                (folder / "lib").rmdir()
                (folder / "lib").symlink_to("usr/lib")
                modules = folder / "usr/lib/modules" / release
            _depmod(folder, release)
            return KernelTree(folder, release, modules, images[0])
    raise CapsulekitError(f"the kernel {release} brings no modules")


def depmod_version() -> str:
    """What depmod says of its version."""
    return run(["depmod", "--version"], purpose="index kernel modules")


def _depmod(root: Path, release: str) -> None:
    run(["depmod", "-b", root, release], purpose="index kernel modules")


def inputs(recipe: Recipe, lock: Lock, merged: bool) -> dict[str, Any]:
    """Everything that decides the bytes of the kernel's image and modules layer."""
    return {
        "packages": [p.sha256 for p in lock.sets["kernel"]],
        "keep": recipe.kernel_modules,
        "merged": merged,
        "epoch": lock.epoch,
        "tools": lock.tools,
        "level": recipe.level,
        "code": code_identity("capsulekit.kernel", "capsulekit.image", "capsulekit.apt.deb", "initramfs_builder"),
    }


def modules_step(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache, merged: bool) -> Step:
    """Make (or reuse) the modules layer and the kernel image: ``modules.squashfs``, ``vmlinuz``, ``release``."""

    def make(out: Path) -> None:
        with cache.scratch() as scratch:
            tree = unpack_kernel(lock.sets["kernel"], distro, scratch)
            if recipe.kernel_modules:
                _keep_only(tree, recipe.kernel_modules)
            (out / "vmlinuz").write_bytes(tree.image.read_bytes())
            (out / "release").write_text(tree.release)
            prefix = "usr/lib/modules" if merged else "lib/modules"
            with layer_from_tar(out / LAYER, lock.epoch, recipe.level) as layer:
                unpacked = tar_tree(tree.modules, f"{prefix}/{tree.release}", lock.epoch, layer)
            (out / "unpacked").write_text(str(unpacked))

    return cache.step("modules", inputs(recipe, lock, merged), make)


def _keep_only(tree: KernelTree, names: Sequence[str]) -> None:
    """Drop every module that ``names`` do not need, and index again."""
    from initramfs_builder.modules import ModuleTree

    kept = {tree.modules / file for file in ModuleTree(tree.root, tree.release).closure(names)}
    for path in tree.modules.rglob("*.ko*"):
        if path not in kept:
            path.unlink()
    _depmod(tree.root, tree.release)


def tar_tree(folder: Path, prefix: str, epoch: int, sink: IO[bytes]) -> int:
    """Write ``folder`` as a tar under ``prefix``, all root's, times ``epoch``, sorted; the bytes of its files."""
    total = 0
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        parts = Path(prefix).parts
        for depth in range(1, len(parts) + 1):
            tar.addfile(_info("/".join(parts[:depth]), 0o755, epoch, tarfile.DIRTYPE))
        for path in _walk(folder):
            name = f"{prefix}/{path.relative_to(folder)}"
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                # Debian's build and source links point into headers a node does not have.
                if path.name not in ("build", "source"):
                    info = _info(name, 0o777, epoch, tarfile.SYMTYPE)
                    info.linkname = str(path.readlink())
                    tar.addfile(info)
            elif stat.S_ISDIR(status.st_mode):
                tar.addfile(_info(name, 0o755, epoch, tarfile.DIRTYPE))
            else:
                info = _info(name, 0o644, epoch, tarfile.REGTYPE)
                info.size = status.st_size
                total += info.size
                with path.open("rb") as data:
                    tar.addfile(info, data)
    return total


def _walk(folder: Path) -> Iterator[Path]:
    for base, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(base) / name for name in sorted([*files, *folders]))


def _info(name: str, mode: int, epoch: int, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.type = mode, epoch, kind
    return info


__all__ = ["LAYER", "KernelTree", "modules_step", "tar_tree", "unpack_kernel"]
