"""The capsule's own initrd, stage 2: a few programs of the distribution, the modules that mount layers, our init."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from initramfs_builder.resources import shell_dir

from capsulekit.cache import Cache, Step, code_identity
from capsulekit.distro.base import Distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from capsulekit.kernel import HYBRID_MODULES, unpack_kernel
from capsulekit.lock.model import Lock
from capsulekit.recipe.model import Recipe

REMARKS = "remarks"


def inputs(recipe: Recipe, lock: Lock) -> dict[str, Any]:
    """Everything that decides the initrd's bytes."""
    shells = [shell_dir(name) for name in ("stage2", *(("stage2-hybrid",) if recipe.hybridize else ()))]
    return {
        "kernel": [p.sha256 for p in lock.sets["kernel"]],
        "packages": [p.sha256 for p in lock.sets["initrd"]],
        "modules": recipe.stage2_modules,
        "epoch": lock.epoch,
        "tools": lock.tools,
        "shell": {
            str(p.relative_to(shell)): sha256_file(p)
            for shell in shells
            for p in sorted(shell.rglob("*"))
            if p.is_file()
        },
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
    """Make (or reuse) ``initrd.img``, and REMARKS for the author, a line each."""

    def make(out: Path) -> None:
        from initramfs_builder.check.closure import must_be_closed
        from initramfs_builder.check.record import Record
        from initramfs_builder.stage2 import assemble_stage2

        with cache.scratch() as scratch:
            tree, kernel = scratch / "tree", scratch / "kernel"
            for package in lock.sets["initrd"]:
                distro.unpack(package, tree)
            unpacked = unpack_kernel(lock.sets["kernel"], distro, kernel)
            if recipe.hybridize:
                _check_network_layer(kernel, unpacked.release)
            with (out / "initrd.img").open("wb") as image:
                made = assemble_stage2(
                    image, tree, kernel, unpacked.release, recipe.stage2_modules, lock.epoch,
                    hybrid=bool(recipe.hybridize),
                )  # fmt: skip
            told = Record(unpacked.release, tuple(recipe.stage2_modules), frozenset(made.missing))
            must_be_closed(out / "initrd.img", "this capsule's initrd", told)
            (out / REMARKS).write_text("".join(f"{remark}\n" for remark in made.remarks))

    return cache.step("initrd", inputs(recipe, lock), make)


def _check_network_layer(kernel: Path, release: str) -> None:
    """Stage 2 takes the network layer's drivers from the modules layer: what can't be there is said now."""
    from initramfs_builder.modules import ModuleTree

    try:
        ModuleTree(kernel, release).closure(HYBRID_MODULES)
    except CapsulekitError as error:
        raise CapsulekitError(
            f"[hybridize] needs a kernel with NFS 4: {error}",
            hint="take another [kernel] package, or name the one that brings these modules in its extra",
        ) from None
