"""What `capsulekit pack` costs beside bare mksquashfs and cpio + gzip, on the root of the compute recipe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.build import RECIPE
from benchmarks.measure import Cost, measure, megabytes
from benchmarks.peers import cpio_gzip, mksquashfs
from benchmarks.trees import built, pack, tree_size, unpacked
from capsulekit.cache import default_cache_dir
from capsulekit.image.squashfs import BLOCK
from capsulekit.recipe.load import load_recipe

# What `pack` needs in a tree beyond the compute recipe's packages, for stage 2.
PACKED = f"""
extends = ["{RECIPE.absolute()}"]

[packages]
include = ["acl"]
"""


def bench_pack(folder: Path) -> None:
    """Rates, seconds and CPU seconds."""
    # The cache of the build's figures is full; alone, the author's own may be.
    cache = folder / "cache" if (folder / "cache").is_dir() else default_cache_dir()
    recipe = folder / "packed.toml"
    recipe.write_text(PACKED)
    tree = unpacked(built(recipe, folder, cache), folder / "compute")
    size, paths = tree_size(tree)
    level = load_recipe(RECIPE).level
    print(
        f"Pack of the compute root and its kernel: {size / 1e6:.0f} MB, {paths} paths (zstd {level}, {BLOCK >> 10} KiB)"
    )
    image, archive = folder / "peer.squashfs", folder / "peer.cpio.gz"
    bare = measure(mksquashfs(tree, image, level, BLOCK))
    _row("mksquashfs, bare", size, bare, note=f"{megabytes(image):.1f} MB")
    gzip = measure(cpio_gzip(tree, archive))
    _row("cpio | gzip, as Warewulf ships it", size, gzip, note=f"{megabytes(archive):.1f} MB")
    ours = pack(tree, folder)
    _row("capsulekit pack, whole: signed capsule", size, ours, bare, "mksquashfs")
    _row("the same", size, ours, gzip, "cpio | gzip")
    _root_layer(tree, size, ours, bare)
    for path in (image, archive):
        path.unlink()
    shutil.rmtree(tree)


def _row(name: str, size: int, cost: Cost, peer: Cost | None = None, peer_name: str = "", note: str = "") -> None:
    """MB/s of unpacked bytes, seconds and CPU seconds, and what these are of the peer's."""
    if peer:
        note = f"{peer.seconds / cost.seconds:.2f} x the rate of {peer_name}, {cost.cpu / peer.cpu:.2f} x its CPU"
    print(f"  {name:<40} {size / cost.seconds / 1e6:7.1f} MB/s {cost.seconds:6.1f} s {cost.cpu:6.1f} CPU s  {note}")


def _root_layer(tree: Path, size: int, ours: Cost, bare: Cost) -> None:
    """The step that makes the root layer, as `pack` itself timed it; its CPU seconds cannot be told apart."""
    step = re.search(r"root file system +([0-9.]+) s", ours.said)
    assert step is not None, ours.said
    seconds = float(step[1])
    layer = size - tree_size(tree / "usr/lib/modules")[0] - tree_size(tree / "boot")[0]
    rate, peer = layer / seconds, size / bare.seconds
    note = f"{rate / peer:.2f} x the rate of mksquashfs"
    print(f"  {'its root layer alone':<40} {rate / 1e6:7.1f} MB/s {seconds:6.1f} s {'':>12}  {note}")
