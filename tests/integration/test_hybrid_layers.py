"""A root split by hybridize is whole again when both layers are mounted, the hybrid one lowest (squashfs, overlay)."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capsulekit.image.squashfs import layer_from_tar
from capsulekit.rootfs.closure import boot_closure
from capsulekit.rootfs.hybrid import Hybrid
from capsulekit.rootfs.normalise import Ledger, Normaliser

EPOCH = 1_700_000_000
TAR = ["tar", "--format=posix", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-cf"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with busybox, real documents and every kind of path that may not leave."""
    top = tmp_path_factory.mktemp("root") / "root"
    for folder in ("bin", "sbin", "etc", "usr/share/doc", "usr/share/secret", "usr/share/empty"):
        (top / folder).mkdir(parents=True)
    (top / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (top / "bin/busybox").chmod(0o755)
    (top / "sbin/init").symlink_to("../bin/busybox")
    share = top / "usr/share"
    for number, source in enumerate(sorted(Path("/usr/share/common-licenses").glob("*"))):
        if source.is_file() and not source.is_symlink():
            (share / "doc" / f"{number}").write_bytes(source.read_bytes() * 20)
    os.link(share / "doc/0", share / "doc/same")
    (share / "doc/link").symlink_to("same")
    (share / os.fsdecode(b"doc/caf\xe9 \n")).write_text("x")
    os.mkfifo(share / "fifo")
    (share / "su").write_text("x")
    (share / "su").chmod(0o4755)
    os.setxattr(share / "su", "security.capability", b"\x01\0\0\2" + b"\x80" + bytes(15))
    (share / "secret/x").write_text("x")
    (share / "secret").chmod(0o700)
    os.chown(share / "doc", 33, 33)
    return top


@pytest.fixture(scope="module")
def layers(root: Path) -> tuple[Path, Path, Ledger]:
    """rootfs.squashfs, hybrid.squashfs and the ledger of ``root`` with /usr/share hybridized."""
    work = root.parent
    subprocess.run([*TAR, work / "root.tar", "-C", root, "."], check=True)
    hybrid = Hybrid(["/usr/share"], boot_closure(root, "/sbin/init"))
    hybrid.scan(work / "root.tar")
    local, shared = work / "rootfs.squashfs", work / "hybrid.squashfs"
    with (
        (work / "root.tar").open("rb") as source,
        layer_from_tar(local, EPOCH, 3) as sink,
        layer_from_tar(shared, EPOCH, 3, exported=True) as other,
    ):
        ledger = Normaliser(EPOCH, hybrid=hybrid).stream(source, sink, other)
    return local, shared, ledger


def mount(image: Path, target: Path) -> None:
    target.mkdir()
    subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro", image, target], check=True)


@pytest.fixture(scope="module")
def mounted(layers: tuple[Path, Path, Ledger], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that holds the mounts: l and h, the layers, and all, the two with the hybrid layer lowest."""
    work = tmp_path_factory.mktemp("m")
    try:
        mount(layers[0], work / "l")
        mount(layers[1], work / "h")
        (work / "all").mkdir()
        lower = f"lowerdir={work}/l:{work}/h,redirect_dir=off,metacopy=off,index=off,xino=off"
        subprocess.run(["mount", "-t", "overlay", "-o", lower, "overlay", work / "all"], check=True)
        yield work
    finally:
        for name in ("all", "h", "l"):
            subprocess.run(["umount", work / name], check=False, capture_output=True)


def attributes(path: Path) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # a squashfs that holds none
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    """Path -> everything of it that must survive; the content by itself, names of one file by their number."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        target = str(path.readlink()) if path.is_symlink() else ""
        links = 1 if path.is_dir() else stat.st_nlink
        found[str(path.relative_to(top))] = (
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            links,
            target,
            content,
            attributes(path),
        )
    return found


def test_the_two_layers_together_are_the_root(root: Path, mounted: Path) -> None:
    assert listing(mounted / "all") == listing(root)


def test_the_hybrid_layer_holds_what_may_leave_and_the_folders_that_lead_there(mounted: Path) -> None:
    shared, local = listing(mounted / "h"), listing(mounted / "l")
    assert {p for p in shared if not (mounted / "h" / p).is_dir()} == {
        p for p in shared if p.startswith("usr/share/doc/")
    }
    assert {p for p in shared if (mounted / "h" / p).is_dir()} == {"usr", "usr/share", "usr/share/doc"}
    assert {"usr/share/su", "usr/share/fifo", "usr/share/secret/x", "usr/share/empty", "usr/share/doc"} <= set(local)
    assert not any(p.startswith("usr/share/doc/") for p in local)


def test_what_a_glob_saves_is_about_what_its_layer_takes(layers: tuple[Path, Path, Ledger]) -> None:
    moved = layers[2].moved["/usr/share"]
    assert moved.unpacked > 4 * moved.packed
    assert moved.packed == pytest.approx(layers[1].stat().st_size, rel=0.25)


def test_a_small_layer_may_be_finished_long_before_the_large_one(tmp_path: Path) -> None:
    """mksquashfs ends at the tar's end: that the padding behind it comes too late is no failure.

    With 240 blocks of content the tar has 260, and its last 4 begin a new piece that a buffer holds back.
    """
    (tmp_path / "root/s").mkdir(parents=True)
    (tmp_path / "root/s/x").write_bytes(os.urandom(240 * 512))
    subprocess.run([*TAR, tmp_path / "root.tar", "-C", tmp_path / "root", "."], check=True)
    hybrid = Hybrid(["/s"], {})
    hybrid.scan(tmp_path / "root.tar")
    packed = tmp_path / "hybrid.squashfs"
    with (tmp_path / "root.tar").open("rb") as source, layer_from_tar(packed, EPOCH, 3) as shared:
        Normaliser(EPOCH, hybrid=hybrid).stream(source, io.BytesIO(), shared)
        time.sleep(1)
    assert packed.stat().st_size > 240 * 512
