"""Build times of the compute recipe: cold, unchanged, a file changed, a package added; beside mmdebstrap and mkosi."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median

from benchmarks.measure import Cost, Failed, capsulekit, measure, megabytes, mount_point, new_key, row, step_seconds
from benchmarks.peers import NSPAWN, mkosi, mmdebstrap
from capsulekit.recipe.load import load_recipe

RECIPE = Path("recipes/debian-12-compute.toml")
SUITE = "bookworm"
CHANGED = """
[files."/etc/motd"]
content = "One file has changed, the {number}. time.\\n"
"""
ADDED = """
[packages]
include = ["tree"]
"""
TIMES = 3  # how often what takes a few seconds is measured; the median counts
UNCHANGED, FILE, PACKAGE = 1.0, 3.0, 0.25  # seconds, seconds, and a share of the cold build


class Ours:
    """Our builds of one child of the compute recipe, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache, self.key = folder, folder / "cache", new_key(folder)
        self.recipe = folder / "site.toml"
        self.change("")

    def change(self, more: str) -> None:
        """The recipe adds ``more`` to its parent."""
        self.recipe.write_text(f'extends = ["{RECIPE.absolute()}"]\n\n[capsule]\nname = "site"\n{more}')

    def build(self, out: str, *words: str) -> Cost:
        """One build from the command line to the signed file; the cost's text is its JSON."""
        common: list[str | Path] = ["--key", self.key, "--cache-dir", self.cache, "--json"]
        return capsulekit("build", self.recipe, "-o", self.folder / out, *common, *words)

    def forget(self) -> None:
        """Drop all results; the packages stay."""
        shutil.rmtree(self.cache / "steps")

    def size(self, out: str) -> str:
        """How large a capsule is, in words."""
        return f"{megabytes(self.folder / out):.0f} MB"

    def same(self, one: str, two: str) -> str:
        """Whether two capsules are the same, in words."""
        same = (self.folder / one).read_bytes() == (self.folder / two).read_bytes()
        return "same bytes" if same else "OTHER BYTES"


def bench_build(folder: Path) -> None:
    """Every figure of a build; the cache in ``folder`` is filled with what the other parts need."""
    packages = load_recipe(RECIPE).packages
    print(f"Build of {RECIPE} ({len(packages)} packages named), from the command line to the signed capsule")
    print("  The peers make the root alone: no kernel, initramfs, image or signature; mmdebstrap always fetches")
    ours = Ours(folder)
    tar = folder / "peer.tar"
    plain = measure(mmdebstrap(SUITE, packages, tar)).seconds
    row("mmdebstrap, its defaults, to a tar", plain, note=f"{megabytes(tar):.0f} MB; fetches its packages")
    peer = ("mmdebstrap", plain)
    cold = ours.build("cold.vnfs", "--write-lock")
    fetching = f"fetching {step_seconds(cold, 'fetch packages'):.1f} s of it"
    row("capsulekit build, nothing cached", cold.seconds, peer=peer, aim=("<= mmdebstrap", plain),
        note=f"{ours.size('cold.vnfs')}; {fetching}")  # fmt: skip
    ours.forget()
    kept = ours.build("kept.vnfs").seconds
    row("capsulekit build, packages cached, no results", kept, peer=peer, aim=("<= mmdebstrap", plain),
        note=ours.same("cold.vnfs", "kept.vnfs"))  # fmt: skip
    _again(ours, peer)
    _changed(ours, peer, cold.seconds)
    _mkosi(folder / "mkosi", packages, peer)
    tar.unlink()


def _again(ours: Ours, peer: tuple[str, float]) -> None:
    locked = median(ours.build("locked.vnfs", "--locked").seconds for _ in range(TIMES))
    row("capsulekit build --locked, nothing changed", locked, peer=peer, aim=("<= 1 s", UNCHANGED),
        note=ours.same("cold.vnfs", "locked.vnfs"))  # fmt: skip
    asked = median(ours.build("asked.vnfs").seconds for _ in range(TIMES))
    row("the same without a lock: the archive is asked", asked, peer=peer)


def _changed(ours: Ours, peer: tuple[str, float], cold: float) -> None:
    files = []
    for number in range(TIMES):
        ours.change(CHANGED.format(number=number))
        files.append(ours.build("file.vnfs", "--locked").seconds)
    file = median(files)
    row("capsulekit build --locked, one file changed", file, peer=peer, aim=("<= 3 s", FILE))
    ours.change(ADDED)
    package = ours.build("package.vnfs").seconds
    row("capsulekit build, one package added (tree)", package, peer=peer, aim=("<= 25 % of cold", PACKAGE * cold),
        note=f"{package / cold:.0%} of cold; asks the archive and fetches it")  # fmt: skip
    ours.change("")


def _mkosi(folder: Path, packages: tuple[str, ...], peer: tuple[str, float]) -> None:
    """mkosi twice: its first build, and the same once more with the package cache that the first has filled."""
    (folder / "cache").mkdir(parents=True)
    try:
        version = measure(["mkosi", "--version"]).said
        with mount_point(NSPAWN):
            first = measure(mkosi(SUITE, packages, folder)).seconds
            row(f"{version}, to a folder", first, peer=peer, note="fetches its packages")
            again = measure(mkosi(SUITE, packages, folder)).seconds
            row(f"{version}, nothing changed", again, peer=peer, note="its package cache full; it reuses no results")
    except (Failed, FileNotFoundError) as error:
        print(f"  NOT MEASURED: mkosi does not run on this machine: {error}")
    finally:
        shutil.rmtree(folder)
