"""Whether memory stays flat while trees grow from 200 MB to 4 GB: for `pack`, and for the root step of a build."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Cost, capsulekit, measure, new_key
from benchmarks.trees import built, fill, pack, tree_size, unpacked
from capsulekit import memory
from capsulekit.build import given_lock
from capsulekit.cache import Cache
from capsulekit.distro.base import distro
from capsulekit.recipe.load import load_recipe
from capsulekit.rootfs import root

SIZES = (200_000_000, 4_000_000_000)
FLAT = 1.25  # times the smaller tree's peak
SMALL = """
[capsule]
name = "bench-small"
version = "1"

[distro]
name = "debian"
release = "12"

[packages]
include = ["acl", "busybox-static"]

[rootfs]
base = "extract"

[kernel]
package = "linux-image-cloud-amd64"

[files."/sbin/init"]
mode = "0755"
content = "#!/bin/busybox sh\\n"
"""


@dataclass(frozen=True)
class _Point:
    """A tree's bytes and paths, and what the command took."""

    size: int
    paths: int
    cost: Cost


def bench_growth(folder: Path) -> None:
    """Two trees, each packed, and each taken for the root of a build."""
    print("Peak memory while trees grow. Processes: the resident sets of all processes of a command at one moment")
    print(
        "  (20 samples a second; shared pages count double, the page cache does not). tmpfs: what it mounts and fills."
    )
    recipe, cache = folder / "small.toml", folder / "small-cache"
    recipe.write_text(SMALL)
    tree = unpacked(built(recipe, folder, cache, "--write-lock"), folder / "small")
    step = _RootStep(recipe, cache)
    packs, roots = [], []
    for size in SIZES:
        fill(tree / "srv", size)
        packs.append(_Point(*tree_size(tree), pack(tree, folder, watched=True)))
        roots.append(_Point(*tree_size(tree / "srv"), step.build(tree)))
    _print("capsulekit pack", packs)
    _print("capsulekit build, the root step alone", roots)
    most = memory.room_for(0)
    print(f"  Roots of a build are unpacked in memory up to {most / 1.5e6:.0f} MB (here and now), others on the disk.")
    for made in (tree, cache):
        shutil.rmtree(made)


class _RootStep:
    """Builds a recipe with another root in place of its packages', in a cache that is thrown away.

    There is no package of 4 GB to install: what the install step left behind, a tar of the root, gets a tree's srv/
    and is handed in as that step's result. All other steps but the root's are reused.
    """

    def __init__(self, recipe: Path, cache: Path) -> None:
        self.recipe, self.store = recipe, Cache(cache)
        wanted = load_recipe(recipe)
        maker = distro(wanted.distro, wanted.release, wanted.arch, self.store)
        self.inputs = root.install_inputs(wanted, given_lock(wanted, recipe.with_suffix(".lock"), maker), maker, 0)
        self.small = recipe.parent / "installed"
        # It is there already, so nothing is made.
        self._taken().rename(self.small)

    def _taken(self) -> Path:
        """The folder of the install step's result."""
        return self.store.step("install", self.inputs, self._swell).folder

    def _swell(self, out: Path) -> None:
        shutil.copyfile(self.small / root.LICENCES, out / root.LICENCES)
        shutil.copyfile(self.small / root.TAR, out / root.TAR)
        measure(["tar", "-C", self.tree, "--append", "--sort=name", "-f", out / root.TAR, "./srv"])

    def build(self, tree: Path) -> Cost:
        """Build with the tree's srv/ in the root."""
        self.tree = tree
        out = self.recipe.with_suffix(".again.vnfs")
        for made in (self.store.root / "steps").glob("rootfs-*"):
            shutil.rmtree(made)
        swollen = self._taken()
        words = ("-o", out, "--key", new_key(out.parent), "--cache-dir", self.store.root, "--locked", "--offline")
        cost = capsulekit("build", self.recipe, *words, watched=True)
        shutil.rmtree(swollen)
        out.unlink()
        return cost


def _print(name: str, points: list[_Point]) -> None:
    """One line a tree, and whether the processes' memory stayed flat."""
    peaks = []
    for point in points:
        assert point.cost.peak is not None
        peaks.append(point.cost.peak.processes)
        told = f"{point.size / 1e6:5.0f} MB, {point.paths} paths, {point.cost.seconds:.1f} s"
        own, tmpfs = point.cost.peak.own / 1e6, point.cost.peak.tmpfs / 1e6
        print(f"  {name:<40} {peaks[-1] / 1e6:4.0f} MB, {own:4.0f} of it our own; tmpfs {tmpfs:4.0f} MB; tree {told}")
    growth = peaks[-1] / peaks[0]
    met = "met" if growth <= FLAT else "MISSED"
    times = points[-1].size / points[0].size
    print(f"  {'':<40} {growth:.2f} x the memory for {times:.0f} x the tree; aim flat (<= {FLAT} x): {met}")
