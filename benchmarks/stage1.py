"""Assembly of stage 1 beside mkinitramfs and dracut, all from unpacked files of the same kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from initramfs_builder.stage1 import assemble

from benchmarks.measure import measure, megabytes, mount_point, row
from benchmarks.peers import dracut, mkinitramfs
from capsulekit.build import fetch_packages
from capsulekit.cache import Cache, default_cache_dir
from capsulekit.distro.base import distro
from capsulekit.kernel import unpack_kernel
from capsulekit.lock.model import Request
from capsulekit.progress import Progress
from capsulekit.stage1 import default_recipe, load_stage1


def bench_stage1(folder: Path) -> None:
    """Seconds and size of the image."""
    print("Stage 1 for the same kernel")
    recipe = load_stage1(default_recipe())
    maker = distro("debian", "12", "amd64", Cache(default_cache_dir()))
    lock = maker.resolve(Request("extract", (), (recipe.kernel,), recipe.packages))
    fetch_packages([p for packages in lock.sets.values() for p in packages], lock, maker, Progress(), False)

    def unpack() -> None:
        for package in lock.sets["initrd"]:
            maker.unpack(package, folder / "tree")
        unpack_kernel(lock.sets["kernel"], maker, folder / "kernel")

    unpacking = _timed(unpack)
    kernel, image = folder / "kernel", folder / "ours.img"
    release = next((kernel / "usr/lib/modules").iterdir()).name

    def ours() -> None:
        with image.open("wb") as out:
            assemble(out, folder / "tree", kernel, release, recipe.config, lock.epoch, recipe.level)

    with mount_point(Path("/lib/modules")):
        first = _timed(ours)
        slower = measure(mkinitramfs(kernel, release, folder / "mk.img")).seconds
        slowest = measure(dracut(kernel, release, folder / "dracut.img")).seconds
        again = _timed(ours)
    row("mkinitramfs, generic (MODULES=most)", slower, note=f"{megabytes(folder / 'mk.img'):.1f} MB")
    row("dracut --no-hostonly", slowest, note=f"{megabytes(folder / 'dracut.img'):.1f} MB")
    row("capsulekit, assembly", first, peer=("mkinitramfs", slower), aim=("<= 0.1 x", 0.1 * slower),
        note=f"{megabytes(image):.1f} MB")  # fmt: skip
    row("the same", first, peer=("dracut", slowest))
    row("the same, once more", again, peer=("mkinitramfs", slower))
    row("unpacking the packages before (peers: installed)", unpacking)


def _timed(what: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.monotonic()
    what()
    return time.monotonic() - start
