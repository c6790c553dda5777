"""The capsule's own initrd, stage 2: a few programs of the distribution, the modules that mount layers, our init."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from initramfs_builder.resources import shell_dir

from capsulekit.cache import Cache, Step, code_identity
from capsulekit.distro.base import Distro
from capsulekit.files import sha256_file
from capsulekit.kernel import unpack_kernel
from capsulekit.lock.model import Lock
from capsulekit.recipe.model import Recipe


def inputs(recipe: Recipe, lock: Lock) -> dict[str, Any]:
    """Everything that decides the initrd's bytes."""
    shell = shell_dir("stage2")
    return {
        "kernel": [p.sha256 for p in lock.sets["kernel"]],
        "packages": [p.sha256 for p in lock.sets["initrd"]],
        "modules": recipe.stage2_modules,
        "epoch": lock.epoch,
        "tools": lock.tools,
        "shell": {str(p.relative_to(shell)): sha256_file(p) for p in sorted(shell.rglob("*")) if p.is_file()},
        "code": code_identity(
            "initramfs_builder",
            "capsulekit.initrd",
            "capsulekit.kernel",
            "capsulekit.apt.deb",
            "capsulekit.rpm",
            "capsulekit.distro",
        ),
    }


def initrd_step(recipe: Recipe, lock: Lock, distro: Distro, cache: Cache) -> Step:
    """Make (or reuse) ``initrd.img``."""

    def make(out: Path) -> None:
        from initramfs_builder.stage2 import assemble_stage2

        with cache.scratch() as scratch:
            tree, kernel = scratch / "tree", scratch / "kernel"
            for package in lock.sets["initrd"]:
                distro.unpack(package, tree)
            unpacked = unpack_kernel(lock.sets["kernel"], distro, kernel)
            with (out / "initrd.img").open("wb") as image:
                assemble_stage2(image, tree, kernel, unpacked.release, recipe.stage2_modules, lock.epoch)

    return cache.step("initrd", inputs(recipe, lock), make)
