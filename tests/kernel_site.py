"""A site with the small capsule and real kernels to give it; what its kernel, modules and initrd are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import built
import kernel_packages
import pytest
from asking_capsule import kit, store_of, stored, trusting_site
from capsulekit_cli import Done
from initramfs_builder.check.closure import must_be_closed
from initramfs_builder.check.record import Record

from capsulekit.capsule.manifest import Manifest
from capsulekit.edit.mounts import mounts_in
from capsulekit.edit.stack import Image
from capsulekit.files import sha256_file
from capsulekit.image.listing import Entry, list_layer
from capsulekit.image.listing import Layer as Squashfs
from capsulekit.sitepaths import SitePaths
from provisioner.vnfs.views import view

NAME = "test-busybox-1.amd64"
KERNEL_PARTS = {"boot/vmlinuz", "boot/initrd.img", "layers/modules.squashfs", "capsule.toml"}
STAGE2 = ("loop", "squashfs", "overlay")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> SitePaths:
    """A site where the small capsule is installed."""
    paths = trusting_site(tmp_path_factory.mktemp("site"))
    assert kit(paths, "trust", "add", f"{built.author_key()}.pub").status == 0
    good(kit(paths, "vnfs", "import", built.capsule(built.BUSYBOX)))
    return paths


@pytest.fixture
def paths(installed: SitePaths, tmp_path: Path) -> Iterator[SitePaths]:
    """A copy of that site; at the end nothing may be mounted there."""
    shutil.copytree(installed.config.parent, tmp_path / "site")
    yield SitePaths(tmp_path / "site/etc", tmp_path / "site/var")
    left = [str(mount.at) for mount in mounts_in(tmp_path)]
    assert not left, f"mounts are left: {left}"


@pytest.fixture(scope="module")
def debs() -> dict[str, Path]:
    """Kernel packages by the Debian release that they are of."""
    return {one: kernel_packages.deb(one) for one in ("12", "13")}


def release(debian: str) -> str:
    return kernel_packages.release_in(kernel_packages.deb(debian))


def good(done: Done) -> str:
    assert done.status == 0, done.err
    return done.out


def members(paths: SitePaths, name: str = NAME) -> dict[str, str]:
    """sha256 by member, what it was made from left out."""
    return {member: sha for member, sha in store_of(paths).digests(name).items() if not member.startswith("parent/")}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def manifest(paths: SitePaths, name: str = NAME) -> Manifest:
    return store_of(paths).manifest(name)


def member(paths: SitePaths, path: str, name: str = NAME) -> Path:
    store = store_of(paths)
    return store.blob(store.digests(name)[path])


def listing(paths: SitePaths, path: str = "layers/modules.squashfs", name: str = NAME) -> dict[str, Entry]:
    return list_layer(Squashfs(member(paths, path, name)))


@contextmanager
def root_of(paths: SitePaths, name: str = NAME) -> Iterator[Path]:
    """What a node's root is."""
    images = [Image(member(paths, layer.path, name)) for layer in manifest(paths, name).layers]
    with view(paths, "test", images) as root:
        yield root


def modprobe(root: Path, kernel: str, module: str) -> list[str]:
    """The files that the node's modprobe would load, relative to the kernel's folder."""
    words = ["modprobe", "-d", root, "-S", kernel, "--show-depends", module]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("insmod")]
    return [line.rpartition(f"/modules/{kernel}/")[2] for line in lines]


def is_whole(paths: SitePaths, name: str = NAME) -> None:
    """Signature and digests hold, and the initrd lacks nothing that its kernel would need."""
    good(kit(paths, "vnfs", "verify", name))
    told = manifest(paths, name)
    must_be_closed(member(paths, "boot/initrd.img", name), name, Record(told.kernel_release, STAGE2, frozenset()))
    for layer in told.layers:
        blob = member(paths, layer.path, name)
        assert (blob.stat().st_size, sha256_file(blob)) == (layer.size, layer.sha256)
        assert blob.stat().st_mode & 0o777 == (0o600 if layer.private else 0o644), layer.path


def refused(paths: SitePaths, *sources: str | Path, status: int = 1) -> str:
    """Ask for these kernels; nothing may have changed, and one line says why."""
    before, here = members(paths), stored(paths)
    done = kit(paths, "vnfs", "kernel", NAME, *(word for source in sources for word in ("--from", source)))
    assert done.status == status, done
    assert (members(paths), stored(paths)) == (before, here) and done.out == ""
    assert done.err.startswith("ERROR: ") and "Traceback" not in done.err
    return done.err.splitlines()[0]
