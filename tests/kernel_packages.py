"""Small packages of real kernels: Debian's own, with only the modules that a test capsule needs, made once per machine.

Two releases, so that one can replace the other; and the same as the RPMs of rpm_distro bring it.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import rpm_distro
from initramfs_builder.modules import ModuleTree

from capsulekit.cache import Cache, default_cache_dir
from capsulekit.distro.base import distro
from capsulekit.edit.depmod import is_module
from capsulekit.files import sha256_file
from capsulekit.kernel import unpack_kernel
from capsulekit.lock.model import Request

KERNEL = "linux-image-cloud-amd64"
MODULES = (
    "af_packet",
    "dummy",
    "loop",
    "nfs",
    "nfsv4",
    "overlay",
    "squashfs",
    "virtio_net",
    "virtio_pci",
    "virtio_rng",
)


@functools.cache
def deb(debian: str) -> Path:
    """A package of the cloud kernel of that Debian release ("12", "13"): boot/vmlinuz-…, its config, some modules."""
    cache = Cache(default_cache_dir())
    maker = distro("debian", debian, "amd64", cache)
    lock = maker.resolve(Request("extract", ((),), (KERNEL,), ("busybox-static",)))

    def make(out: Path) -> None:
        maker.fetch(lock, lock.sets["kernel"], False, lambda _: None)
        with cache.scratch() as scratch:
            kernel = unpack_kernel(lock.sets["kernel"], maker, scratch / "tree")
            wanted = set(ModuleTree(kernel.root, kernel.release).closure(MODULES))
            for path in [p for p in kernel.modules.rglob("*") if is_module(p.name)]:
                if path.relative_to(kernel.modules).as_posix() not in wanted:
                    path.unlink()
            build_deb(kernel.root, f"linux-image-{kernel.release}", out / "kernel.deb")

    made_by = sha256_file(Path(__file__))
    return cache.step("kernel-test-package", {"lock": lock.digest, "made by": made_by}, make).folder / "kernel.deb"


def build_deb(tree: Path, name: str, out: Path, arch: str = "amd64") -> Path:
    """A package of a tree, by the real tool."""
    (tree / "DEBIAN").mkdir(exist_ok=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: {arch}\nMaintainer: A test <t@test.example>\n"
    (tree / "DEBIAN/control").write_text(f"{control}Description: made for a test\n")
    if (tree / "lib").is_symlink():  # as Debian 12's packages spell it
        (tree / "lib").unlink()
        (tree / "usr/lib").rename(tree / "lib")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, out], check=True, capture_output=True)
    return out


@functools.cache
def rpms() -> tuple[Path, ...]:
    """kernel-core, kernel-modules-core and kernel-modules of the RPM distribution that is made on the spot."""
    made = rpm_distro._unsigned(Cache(default_cache_dir()))
    return tuple(path for path in made if path.name.startswith(("kernel-core", "kernel-modules")))


def unpacked(package: Path, folder: Path) -> Path:
    """A package's files, to be changed and built again."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return folder


def release_in(package: Path) -> str:
    """The release of the kernel in a package."""
    told = subprocess.run(["dpkg-deb", "-f", package, "Package"], check=True, capture_output=True, text=True)
    return told.stdout.strip().removeprefix("linux-image-")
