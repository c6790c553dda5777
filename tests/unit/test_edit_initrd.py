"""An initrd is its own source of programs: made again it is what it was, but for modules and shell that are newer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import kernel_packages
import pytest
from images import names_in, unpack_image
from initramfs_builder import cpio, resources
from initramfs_builder.stage2 import assemble_stage2
from initramfs_builder.unpack import read_image
from own_programs import root_with

from capsulekit.edit.depmod import index_modules
from capsulekit.edit.initrd import needs_initrd, rebuild_initrd, stage2_modules
from capsulekit.errors import CapsulekitError, TrustError

EPOCH = 1_700_000_000
MODULES = ("loop", "squashfs", "overlay")
RELEASE = kernel_packages.release_in(kernel_packages.deb("12"))
NEWER = kernel_packages.release_in(kernel_packages.deb("13"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged root with the modules of two kernels and no program."""
    folder = tmp_path_factory.mktemp("kernels")
    root = folder / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    for debian in ("12", "13"):
        tree = kernel_packages.unpacked(kernel_packages.deb(debian), folder / debian)
        source = next(path for path in (tree / "usr/lib/modules", tree / "lib/modules") if path.is_dir())
        shutil.copytree(source, root / "usr/lib/modules", dirs_exist_ok=True)
    for release in (RELEASE, NEWER):
        index_modules(root, release)
    return root


def made(out: Path, programs: Path, kernels: Path, *, hybrid: bool = False) -> Path:
    """An initrd as a build makes it."""
    with out.open("wb") as image:
        assemble_stage2(image, programs, kernels, RELEASE, MODULES, EPOCH, hybrid=hybrid)
    return out


@pytest.fixture(scope="module")
def initrds(tmp_path_factory: pytest.TempPathFactory, kernels: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("initrds")
    return {
        one: made(folder / f"{one}.img", root_with(folder / one, one), kernels) for one in ("busybox", "dash", "bash")
    }


def content(image: Path) -> dict[str, tuple[int, str | None, bytes]]:
    return {one.path: (one.mode, one.target, one.read()) for one in read_image(image)}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["busybox", "dash", "bash"])
def test_made_again_it_is_the_same(shell: str, initrds: dict[str, Path], kernels: Path, tmp_path: Path) -> None:
    old = initrds[shell]
    assert needs_initrd(old, RELEASE, MODULES) == "" and needs_initrd(old, RELEASE, MODULES, kernels) == ""
    again = rebuild_initrd(tmp_path / "again.img", old, kernels, RELEASE, MODULES, EPOCH)
    assert content(again.path) == content(old) and again.remarks == ()
    third = rebuild_initrd(tmp_path / "third.img", again.path, kernels, RELEASE, MODULES, EPOCH)
    assert third.sha256 == again.sha256 and third.path.read_bytes() == again.path.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("shell", ["busybox", "bash"])
def test_another_kernel_brings_its_modules_and_leaves_nothing_of_the_old(
    shell: str, initrds: dict[str, Path], kernels: Path, tmp_path: Path
) -> None:
    new = rebuild_initrd(tmp_path / "new.img", initrds[shell], kernels, NEWER, MODULES, EPOCH)
    held = content(new.path)
    assert f"usr/lib/modules/{NEWER}/modules.dep" in held and not any(RELEASE in path for path in held)
    programs = {path for path in content(initrds[shell]) if not path.startswith("usr/lib/modules/")}
    assert {path for path in held if not path.startswith("usr/lib/modules/")} == programs
    assert needs_initrd(new.path, NEWER, MODULES, kernels) == ""


def test_a_module_that_changed_is_why_and_another_is_not(
    initrds: dict[str, Path], kernels: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(kernels, root, symlinks=True)
    (dummy,) = (root / "usr/lib/modules" / RELEASE).rglob("dummy.ko")
    dummy.unlink()
    index_modules(root, RELEASE)
    assert needs_initrd(initrds["busybox"], RELEASE, MODULES, root) == ""
    (loop,) = (root / "usr/lib/modules" / RELEASE).rglob("loop.ko")
    loop.write_bytes(loop.read_bytes() + bytes(8))
    why = needs_initrd(initrds["busybox"], RELEASE, MODULES, root)
    assert why.startswith("a module it holds is another one: ") and "loop.ko is changed" in why
    assert needs_initrd(initrds["busybox"], RELEASE, MODULES) == "", "who touched no module is not asked about them"


def test_a_newer_stage_2_is_why(
    initrds: dict[str, Path], kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(resources.shell_dir("stage2"), newer)
    (newer / "lib/stack.sh").unlink()
    monkeypatch.setattr("capsulekit.edit.initrd.shell_dir", lambda _: newer)
    why = needs_initrd(initrds["busybox"], RELEASE, MODULES)
    assert why == "stage 2 of this capsulekit is another one: usr/lib/capsulekit/stack.sh is gone"


@pytest.mark.slow
def test_what_mounts_a_network_layer_stays_and_comes_when_it_is_wanted(
    initrds: dict[str, Path], kernels: Path, tmp_path: Path
) -> None:
    hybrid = made(tmp_path / "hybrid.img", root_with(tmp_path / "programs", "bash"), kernels, hybrid=True)
    again = rebuild_initrd(tmp_path / "again.img", hybrid, kernels, RELEASE, MODULES, EPOCH)
    assert "usr/lib/capsulekit/hybrid.sh" in names_in(again.path.read_bytes())
    assert "hybrid.sh is new" in needs_initrd(initrds["busybox"], RELEASE, MODULES, hybrid=True)
    added = rebuild_initrd(tmp_path / "added.img", initrds["busybox"], kernels, RELEASE, MODULES, EPOCH, hybrid=True)
    assert needs_initrd(added.path, RELEASE, MODULES, kernels, hybrid=True) == ""
    bare = tmp_path / "bare"
    shutil.copytree(kernels, bare, symlinks=True)
    for path in (bare / "usr/lib/modules" / RELEASE).rglob("nfs*.ko"):
        path.unlink()
    index_modules(bare, RELEASE)
    with pytest.raises(CapsulekitError, match="a hybrid capsule needs a kernel with NFS 4"):
        rebuild_initrd(tmp_path / "no.img", hybrid, bare, RELEASE, MODULES, EPOCH)
    assert not (tmp_path / "no.img").exists()


@pytest.mark.slow
def test_where_the_old_initrd_lacks_a_command_all_programs_are_the_roots(
    initrds: dict[str, Path], kernels: Path, tmp_path: Path
) -> None:
    root = root_with(tmp_path / "root", "bash")
    (root / "usr/bin/setfacl").rename(tmp_path / "setfacl")
    shutil.copytree(kernels / "usr/lib/modules", root / "usr/lib/modules")
    out, old = tmp_path / "x.img", initrds["dash"]
    with pytest.raises(
        CapsulekitError, match=r"needs the command \w+, which the old initrd lacks, and the root lacks setfacl"
    ):
        rebuild_initrd(out, old, root, RELEASE, MODULES, EPOCH, hybrid=True)
    (tmp_path / "setfacl").rename(root / "usr/bin/setfacl")
    done = rebuild_initrd(out, old, root, RELEASE, MODULES, EPOCH, hybrid=True)
    assert "its programs are the root's own now" in done.remarks[0]
    assert content(out)["usr/bin/sh"][1] == "bash" and "usr/bin/dash" not in content(out)


def test_a_missing_module_stops_it_and_leaves_nothing(initrds: dict[str, Path], kernels: Path, tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="has no module nosuch"):
        rebuild_initrd(tmp_path / "x.img", initrds["bash"], kernels, RELEASE, (*MODULES, "nosuch"), EPOCH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_kernel_is_believed_about_what_it_unpacks(initrds: dict[str, Path], kernels: Path, tmp_path: Path) -> None:
    config = tmp_path / "tree/boot"
    config.mkdir(parents=True)
    (config / f"config-{NEWER}").write_text("CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_GZIP=y\n")
    old = initrds["busybox"]
    gzip = rebuild_initrd(tmp_path / "1.img", old, kernels, NEWER, MODULES, EPOCH, kernel=tmp_path / "tree")
    assert {one.packed for one in read_image(gzip.path)} == {"gzip"}
    again = rebuild_initrd(tmp_path / "2.img", gzip.path, kernels, NEWER, MODULES, EPOCH)
    assert again.sha256 == gzip.sha256, "it did boot with that"
    (guessed,) = rebuild_initrd(tmp_path / "4.img", old, kernels, NEWER, MODULES, EPOCH).remarks
    assert "zstd is taken by its number" in guessed


def test_an_initrd_that_is_none_of_ours_is_refused_and_nothing_is_written_outside(
    kernels: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    hostile = {
        "through a link": [cpio.symlink("usr/bin", str(outside)), cpio.regular("usr/bin/evil", b"x", 0o755)],
        "a device": [cpio.char_device("usr/disk", 8, 0, 0o600)],
        "below a file": [cpio.regular("usr", b"x"), cpio.regular("usr/bin/x", b"x")],
    }
    for name, entries in hostile.items():
        image = tmp_path / "evil.img"
        with image.open("wb") as out:
            folders = [cpio.directory(f) for f in ("usr/bin", "usr") if all(e.path != f for e in entries)]
            cpio.write_cpio(out, [*folders[::-1], *entries], EPOCH, before=["usr", "usr/bin"])
        with pytest.raises(CapsulekitError) as error:
            rebuild_initrd(tmp_path / "x.img", image, kernels, RELEASE, MODULES, EPOCH)
        assert name == "through a link" or isinstance(error.value, TrustError), name
        assert list(outside.iterdir()) == [] and not (tmp_path / "x.img").exists()
    (tmp_path / "evil.img").write_bytes(b"rubbish!")
    with pytest.raises(TrustError):
        needs_initrd(tmp_path / "evil.img", RELEASE, MODULES)


def test_the_recipe_says_which_modules_and_a_strange_one_gets_the_usual() -> None:
    text = '[capsule]\nname = "x"\nversion = "1"\n[distro]\nname = "debian"\nrelease = "12"\n'
    more = '[kernel]\npackage = "linux"\nstage2 = ["loop", "virtio_blk"]\n'
    assert stage2_modules((text + more).encode()) == ("loop", "virtio_blk")
    assert stage2_modules(b"name = 1") == stage2_modules(b"\xff") == MODULES


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for chroot")
@pytest.mark.slow
def test_the_programs_of_a_rebuilt_initrd_run(initrds: dict[str, Path], kernels: Path, tmp_path: Path) -> None:
    made_again = rebuild_initrd(tmp_path / "x.img", initrds["bash"], kernels, RELEASE, MODULES, EPOCH)
    root = unpack_image(made_again.path.read_bytes(), tmp_path / "root")
    said = subprocess.run(
        ["chroot", root, "sh", "-c", "modprobe --version && mount --version"], capture_output=True, text=True
    )
    assert said.returncode == 0 and "kmod" in said.stdout, said.stderr
