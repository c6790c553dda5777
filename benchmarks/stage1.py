"""Assembly of stage 1 beside mkinitramfs and dracut: the same kernel, the same firmware, all from unpacked files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from initramfs_builder.pack import Report
from initramfs_builder.stage1 import assemble
from initramfs_builder.store import Store
from initramfs_builder.unpack import read_image

from benchmarks.measure import measure, megabytes, mount_point, row
from benchmarks.peers import dracut, mkinitramfs
from capsulekit.build import fetch_packages
from capsulekit.cache import Cache, default_cache_dir
from capsulekit.distro.base import distro
from capsulekit.kernel import unpack_kernel
from capsulekit.lock.model import Request
from capsulekit.progress import Progress
from capsulekit.stage1recipe import VIRTUAL, load_stage1, shipped_recipe

T = TypeVar("T")
COLD, WARM = 5.0, 1.0  # seconds


def bench_stage1(folder: Path) -> None:
    """Seconds and sizes of the images of both profiles."""
    for recipe in (shipped_recipe(), shipped_recipe(VIRTUAL)):
        where = folder / recipe.stem
        where.mkdir()
        _bench(recipe, where)
        shutil.rmtree(where)


def _bench(recipe: Path, folder: Path) -> None:
    wanted = load_stage1(recipe)
    print(f"Stage 1, profile {wanted.config.profile}, and the peers' for the same kernel and firmware")
    maker = distro(wanted.distro, wanted.release, wanted.arch, Cache(default_cache_dir()), wanted.components)
    lock = maker.resolve(Request("extract", (), (wanted.kernel,), wanted.packages))
    fetch_packages([p for packages in lock.sets.values() for p in packages], lock, maker, Progress(), False)

    def unpack() -> None:
        for package in lock.sets["initrd"]:
            maker.unpack(package, folder / "tree")
        unpack_kernel(lock.sets["kernel"], maker, folder / "kernel")

    unpacking, _ = _timed(unpack)
    os.sync()  # or whoever comes next waits for the disk
    kernel, firmware = folder / "kernel", folder / "tree/lib/firmware"
    firmware.mkdir(parents=True, exist_ok=True)
    release = next((kernel / "usr/lib/modules").iterdir()).name
    (folder / "scratch").mkdir()
    store = Store(folder / "store", folder / "scratch")

    def ours() -> Report:
        with (folder / "ours.img").open("wb") as out:
            return assemble(
                out, folder / "tree", kernel, release, wanted.config, lock.epoch, wanted.level, store=store
            )  # fmt: skip

    with mount_point(Path("/lib/modules")), mount_point(Path("/lib/firmware")):
        cold, _ = _timed(ours)
        slower = measure(mkinitramfs(kernel, firmware, release, folder / "mk.img")).seconds
        slowest = measure(dracut(kernel, firmware, release, folder / "dracut.img")).seconds
        # The median: a second is easily spoilt on a machine that has other work.
        warm, report = sorted((_timed(ours) for _ in range(3)), key=lambda run: run[0])[1]
    row("mkinitramfs, generic (MODULES=most)", slower, note=_sizes(folder / "mk.img"))
    row("dracut --no-hostonly", slowest, note=_sizes(folder / "dracut.img"))
    row("capsulekit, nothing kept", cold, peer=("mkinitramfs", slower), aim=(f"<= {COLD:g} s", COLD),
        note=_sizes(folder / "ours.img"))  # fmt: skip
    row("the same, once more", warm, peer=("mkinitramfs", slower), aim=(f"<= {WARM:g} s", WARM),
        note=f"{report.entries} entries")  # fmt: skip
    row("the same", warm, peer=("dracut", slowest))
    row("unpacking the packages before (peers: installed)", unpacking)


def _sizes(image: Path) -> str:
    """What an image takes on the wire and in a node's memory, and how much of both is microcode."""
    size = microcode = 0
    for member in read_image(image):
        size += member.size
        microcode += member.size if member.path.startswith("kernel/x86/microcode/") else 0
    return f"{megabytes(image):.1f} MB, unpacked {size / 1e6:.1f} MB, of both microcode {microcode / 1e6:.1f} MB"


def _timed(what: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds of one call, and what it returns."""
    start = time.monotonic()
    done = what()
    return time.monotonic() - start, done
