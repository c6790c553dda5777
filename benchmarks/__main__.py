"""`make bench [ONLY=build|stage1|boot]`: prints figures, asserts nothing. Root; takes about ten minutes from cold."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from initramfs_builder.stage1 import assemble

from capsulekit.build import BuildOptions, build, fetch_packages
from capsulekit.cache import Cache, default_cache_dir
from capsulekit.distro.base import distro
from capsulekit.kernel import unpack_kernel
from capsulekit.progress import Progress
from capsulekit.recipe.load import load_recipe
from capsulekit.stage1 import build_stage1, default_recipe, load_stage1
from capsulekit.trust.minisign import create_key_files
from provisioner.lab.demo import mac_of, steps_text
from provisioner.lab.lab import Lab
from provisioner.lab.site import LabSite

RECIPE = Path("recipes/debian-12-compute.toml")
# The peers read /lib/modules and /boot: they get the capsule's kernel there, in a mount namespace of their own.
WITH_KERNEL = 'mount --bind "$1/usr/lib/modules" /lib/modules && mount --bind "$1/boot" /boot && shift && exec "$@"'


def timed(what: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.monotonic()
    what()
    return time.monotonic() - start


def command(argv: list[str | Path]) -> None:
    """Run a peer; its words only when it fails."""
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"{argv[0]} failed: {done.stderr.decode(errors='replace')[-2000:]}")


@contextlib.contextmanager
def mount_point(path: Path) -> Iterator[None]:
    """A folder to mount on; removed afterwards when this machine had none."""
    made = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if made:
            path.rmdir()


def row(name: str, seconds: float, than: float | None = None, note: str = "") -> None:
    """One line: seconds, and how many times the peer's."""
    ratio = f"{seconds / than:6.2f} x peer" if than else " " * 13
    print(f"  {name:<44} {seconds:8.1f} s  {ratio}  {note}".rstrip())


def bench_build(folder: Path) -> None:
    """Build of the compute recipe, cold and unchanged, beside plain mmdebstrap of the same packages."""
    print("Build of", RECIPE)
    recipe = load_recipe(RECIPE)
    key = folder / "author"
    create_key_files(key, None)

    def ours(out: str) -> Callable[[], object]:
        options = BuildOptions(RECIPE, folder / out, key, None, False, folder / "cache")
        return lambda: build(options, lambda: b"", Progress())

    peer_argv: list[str | Path] = ["mmdebstrap", "--variant=essential", "--include=" + ",".join(recipe.packages),
                                   "bookworm", folder / "peer.tar"]  # fmt: skip
    peer = timed(lambda: command(peer_argv))
    cold = timed(ours("cold.vnfs"))
    warm = timed(ours("warm.vnfs"))
    tar, capsule = (folder / "peer.tar").stat().st_size, (folder / "cold.vnfs").stat().st_size
    same = (folder / "cold.vnfs").read_bytes() == (folder / "warm.vnfs").read_bytes()
    row("mmdebstrap to a tar, no kernel, no cache", peer, note=f"{tar / 1e6:.0f} MB")
    row("capsulekit build, cold, signed capsule", cold, peer, f"{capsule / 1e6:.0f} MB, aim 1.2")
    row("capsulekit build, nothing changed", warm, peer, f"same bytes: {same}, aim 2 s")


def bench_stage1(folder: Path) -> None:
    """Assembly of stage 1 beside mkinitramfs and dracut, all from unpacked files of the same kernel."""
    print("Stage 1 for the same kernel")
    recipe = load_stage1(default_recipe())
    maker = distro("debian", "12", "amd64", Cache(default_cache_dir()))
    lock = maker.resolve(Request("extract", (), (recipe.kernel,), recipe.packages))
    fetch_packages([p for packages in lock.sets.values() for p in packages], lock, maker, Progress(), False)

    def unpack() -> None:
        for package in lock.sets["initrd"]:
            maker.unpack(package, folder / "tree")
        unpack_kernel(lock.sets["kernel"], maker, folder / "kernel")

    unpacking = timed(unpack)
    release = next((folder / "kernel/usr/lib/modules").iterdir()).name

    def assemble_ours() -> None:
        with (folder / "ours.img").open("wb") as out:
            assemble(out, folder / "tree", folder / "kernel", release, recipe.config, lock.epoch, recipe.level)

    inside: list[str | Path] = ["unshare", "-m", "sh", "-euc", WITH_KERNEL, "sh", folder / "kernel"]
    generic: list[str | Path] = ["dracut", "-q", "--force", "--no-hostonly", "--zstd"]
    with mount_point(Path("/lib/modules")):
        ours = timed(assemble_ours)
        mkinitramfs = timed(lambda: command([*inside, "mkinitramfs", "-c", "zstd", "-o", folder / "mk.img", release]))
        dracut = timed(lambda: command([*inside, *generic, folder / "dracut.img", release]))
        again = timed(assemble_ours)
    size = {name: f"{(folder / name).stat().st_size / 1e6:.1f} MB" for name in ("ours.img", "mk.img", "dracut.img")}
    row("mkinitramfs, generic (MODULES=most)", mkinitramfs, note=size["mk.img"])
    row("dracut --no-hostonly", dracut, note=size["dracut.img"])
    row("capsulekit, assembly", ours, mkinitramfs, f"{size['ours.img']}, aim 0.1; peer is mkinitramfs")
    row("the same, peer is dracut", ours, dracut)
    row("the same, once more", again, mkinitramfs)
    row("unpacking the packages before (peers: installed)", unpacking)


def bench_boot(folder: Path) -> None:
    """Seconds from power-on to ready by step, bytes sent, memory used by the running node. Emulated: compare ratios."""
    print("Boot of the compute capsule on one emulated node with 1 GB")
    key, capsule, stage1 = folder / "author2", folder / "boot.vnfs", folder / "boot-stage1"
    create_key_files(key, None)
    result = build(BuildOptions(RECIPE, capsule, key, None, False, default_cache_dir()), lambda: b"", Progress())
    build_stage1(default_recipe(), stage1, default_cache_dir(), Progress())
    with Lab(folder / "lab") as lab:
        site = LabSite(folder / "site")
        site.init(lab, stage1, "--default-vnfs", result.name)
        site.command("trust", "add", f"{key}.pub")
        site.command("vnfs", "import", str(capsule))
        for module in ("hostname", "sshkeys"):
            site.command("module", "activate", module)
        lab.serve(site.paths)
        machine = lab.node(mac_of(0), memory=1024)
        started = time.time()
        machine.start()
        site.wait_ready(mac_of(0), 900)
        registry = site.registry
        events = registry.events(mac_of(0))
        registry.close()
        print(steps_text(events, started))
        used = next((e.mem_used_kb for e in reversed(events) if e.state == "ready"), None)
        print(f"  memory used by the running node {(used or 0) / 1024:.0f} MB of 1024, layers held in RAM included")
        link = json.loads(lab.run(["ip", "-json", "-s", "link", "show", machine.machine.tap]))[0]
        sent = link["stats64"]["tx"]["bytes"]
    size = capsule.stat().st_size
    print(f"  bytes sent to the node, everything on its wire {sent / 1e6:.1f} MB (capsule {size / 1e6:.1f} MB)")


def main() -> None:
    """Run all benchmarks, or the one named."""
    parts = {"build": bench_build, "stage1": bench_stage1, "boot": bench_boot}
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("only", nargs="?", choices=sorted(parts))
    only = parser.parse_args().only
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="capsulekit-bench-", dir="/var/tmp") as name:
        for part, run in parts.items():
            if only in (None, part):
                run(Path(name))


if __name__ == "__main__":
    main()
