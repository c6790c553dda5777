"""Editing an installed capsule of 2 GB beside what peers do for one changed file: build the whole image again."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from statistics import median

from benchmarks.boot import make_stage1
from benchmarks.measure import CAPSULEKIT, Cost, measure, new_key, row
from benchmarks.pack import PACKED
from benchmarks.peers import cpio_gzip, mksquashfs
from benchmarks.trees import built, fill, pack_to, tree_size, unpacked
from capsulekit.cache import default_cache_dir
from capsulekit.image.squashfs import BLOCK
from capsulekit.recipe.load import load_recipe
from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.registry import open_registry
from provisioner.vnfs.store import VnfsStore

SIZE = 2_000_000_000  # bytes of files in the capsule's root
TIMES = 3  # the median counts
UMOUNT, CLONE = 2.0, 0.2  # seconds
PACKAGE = "tree"
INSTALL = f"apt-get -q update && apt-get -q install -y --no-install-recommends {PACKAGE}"


class Site:
    """A site of its own below ``folder``, and its command line."""

    def __init__(self, folder: Path) -> None:
        self.paths = SitePaths(folder / "etc", folder / "var")
        stage1 = make_stage1(folder / "stage1")
        # Nothing is served here: an address is needed all the same.
        init_site(
            self.paths, InitRequest("lo", "127.0.0.1/8", "127.0.0.100-127.0.0.110", "bench.test", "auto", (stage1,))
        )

    def run(self, *words: str | Path) -> Cost:
        """One capsulekit command on this site."""
        return measure([CAPSULEKIT, "--config-dir", self.paths.config, "--state-dir", self.paths.state, "-y", *words])

    def boot_files(self, name: str) -> dict[str, int]:
        """What a node fetches of a capsule: hex sha256 → bytes."""
        with closing(open_registry(self.paths)) as registry:
            members = VnfsStore(self.paths, registry).members(name)
        return {m.sha256: m.size for m in members if m.name.startswith(("boot/", "layers/")) and "hybrid" not in m.name}


def bench_edit(folder: Path) -> None:
    """umount after one changed file, the peers' images of the same root, clone, and a package's bytes."""
    recipe = folder / "edited.toml"
    recipe.write_text(PACKED)
    tree = unpacked(built(recipe, folder, default_cache_dir()), folder / "edited")
    fill(tree, SIZE)
    size, paths = tree_size(tree)
    print(f"Editing a capsule of {size / 1e6:.0f} MB, {paths} paths: one file of 12 bytes changes")
    image, archive = folder / "edited.squashfs", folder / "edited.cpio.gz"
    squashed = measure(mksquashfs(tree, image, load_recipe(recipe).level, BLOCK))
    gzipped = measure(cpio_gzip(tree, archive))
    capsule = pack_to(folder / "edited.vnfs", tree, folder)
    for path in (image, archive):
        path.unlink()
    shutil.rmtree(tree)
    site = Site(folder / "edit-site")
    site.run("trust", "add", new_key(folder).with_name("author.pub"))
    imported = site.run("vnfs", "import", capsule, "--as", "big")
    whole = capsule.stat().st_size
    capsule.unlink()
    row("mksquashfs of the whole root, as LTSP does", squashed.seconds)
    row("cpio | gzip of the whole root, as Warewulf does", gzipped.seconds)
    row("capsulekit vnfs import, once", imported.seconds, note=f"{whole / 1e6:.0f} MB")
    _umounts(site, folder / "at", squashed, gzipped)
    clones = [site.run("vnfs", "clone", "big", f"clone{number}").seconds for number in range(TIMES)]
    start = measure([CAPSULEKIT, "--version"]).seconds
    row("vnfs clone", median(clones), aim=("0.2 s", CLONE), note=f"{start:.2f} s of it is the program's start")
    _update(site, whole)


def _umounts(site: Site, at: Path, squashed: Cost, gzipped: Cost) -> None:
    mounts, umounts = [], []
    for number in range(TIMES):
        mounts.append(site.run("mount", "big", "--at", at).seconds)
        (at / "etc/bench.conf").write_text(f"change {number:04}\n")
        umounts.append(site.run("umount", "big").seconds)
    row("mount", median(mounts))
    ours = median(umounts)
    row("umount: packed, signed, switched", ours, peer=("mksquashfs", squashed.seconds), aim=("2 s", UMOUNT))
    row("the same", ours, peer=("cpio | gzip", gzipped.seconds))


def _update(site: Site, whole: int) -> None:
    """A package more: what a node with a cache disk fetches, which has the generation before."""
    before = site.boot_files("big")
    cost = site.run("shell", "big", "--", "sh", "-c", INSTALL)
    after = site.boot_files("big")
    new = sum(size for digest, size in after.items() if digest not in before)
    total = sum(after.values())
    row(f"capsulekit shell: apt-get install {PACKAGE}", cost.seconds)
    print(f"  a node that has the generation before fetches {new / 1e3:.1f} kB of {total / 1e6:.1f} MB")
    print(f"  ({100 * new / total:.3f} %); peers send their whole image again (the capsule file: {whole / 1e6:.0f} MB)")
