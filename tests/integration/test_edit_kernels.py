"""Modules and kernels in edits: what umount makes of them, and what a rebuild follows."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import built
import kernel_packages
import pytest
from asking_capsule import kit, store_of, stored, trusting_site
from images import unpack_image
from initramfs_builder import resources
from initramfs_builder.unpack import read_image
from kernel_site import (
    KERNEL_PARTS,
    NAME,
    changed,
    debs,
    good,
    installed,
    is_whole,
    listing,
    manifest,
    member,
    members,
    modprobe,
    paths,
    refused,
    release,
    root_of,
)

from capsulekit.capsule.manifest import loads
from capsulekit.capsule.read import open_capsule
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.sitepaths import SitePaths

__all__ = ["debs", "installed", "paths"]  # the fixtures
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts layers")]


# --- edits and kernels


@contextmanager
def edited(paths: SitePaths, at: Path, *words: str) -> Iterator[Path]:
    """Mount, let the block change it, umount."""
    good(kit(paths, "mount", NAME, "--at", at))
    yield at
    good(kit(paths, "umount", NAME, *words))


def driver(at: Path, name: str = "dummy") -> Path:
    (found,) = (at / "lib/modules").rglob(f"{name}.ko*")
    return found


def newer_stage2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This capsulekit's stage 2 is another than that of the capsule."""
    newer = tmp_path / "newer"
    shutil.copytree(resources.shell_dir("stage2"), newer)
    with (newer / "init").open("a") as init:
        init.write("# of tomorrow\n")
    for module in ("initramfs_builder.stage2", "capsulekit.edit.initrd"):
        monkeypatch.setattr(f"{module}.shell_dir", lambda _: newer)


def test_an_out_of_tree_driver_in_an_edit_is_found_on_the_node_and_the_initrd_stays(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["12"]))
    before, kernel = members(paths), release("12")
    with edited(paths, tmp_path / "at") as at:
        extra = at / f"lib/modules/{kernel}/updates/mine.ko"
        extra.parent.mkdir()
        shutil.copy(driver(at), extra)
        driver(at).unlink()
    after = members(paths)
    assert after["boot/initrd.img"] == before["boot/initrd.img"] and "layers/01-edit.squashfs" in after
    with root_of(paths) as root:
        assert modprobe(root, kernel, "mine") == ["updates/mine.ko"] and not modprobe(root, kernel, "dummy")


def test_a_driver_of_the_initrd_that_an_edit_replaces_is_in_the_initrd(paths: SitePaths, tmp_path: Path) -> None:
    kernel = manifest(paths).kernel_release
    with edited(paths, tmp_path / "at") as at:
        mine = driver(at, "loop").read_bytes() + bytes(8)
        driver(at, "loop").write_bytes(mine)
    held = {one.path: one.read() for one in read_image(member(paths, "boot/initrd.img")) if "loop.ko" in one.path}
    assert list(held.values()) == [mine] and kernel in next(iter(held))
    is_whole(paths)


def test_umount_refuses_modules_of_another_kernel_and_moves_them_when_told(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["12"]))
    before, kernel, other, at = members(paths), release("12"), "6.0.0-other", tmp_path / "at"
    good(kit(paths, "mount", NAME, "--at", at))
    foreign = at / f"lib/modules/{other}/updates/mine.ko"
    foreign.parent.mkdir(parents=True)
    shutil.copy(driver(at), foreign)
    done = kit(paths, "umount", NAME)
    assert done.status == 1 and f"modules of kernel {other}" in done.err and "--move-modules" in done.err, done
    assert "updates/mine.ko moves to" in good(kit(paths, "umount", NAME, "--move-modules", "--dry-run"))
    assert members(paths) == before and foreign.exists(), "it is still mounted"
    out = good(kit(paths, "umount", NAME, "--move-modules"))
    assert "built for kernel" not in out, "it will load: it is of this kernel"
    with root_of(paths) as root:
        assert modprobe(root, kernel, "mine") == ["updates/mine.ko"] and modprobe(root, kernel, "nfsv4")
        assert not (root / f"lib/modules/{other}/updates/mine.ko").exists()
    is_whole(paths)


def test_umount_makes_the_initrd_again_when_stage_2_has_become_another(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = members(paths)
    newer_stage2(tmp_path, monkeypatch)
    with edited(paths, tmp_path / "at") as at:
        (at / "etc/motd").write_text("edited\n")
    assert changed(before, members(paths)) == {"boot/initrd.img", "layers/01-edit.squashfs", "capsule.toml"}
    tree = unpack_image(member(paths, "boot/initrd.img").read_bytes(), tmp_path / "image")
    assert (tree / "init").read_text().endswith("# of tomorrow\n")
    is_whole(paths)


def test_modules_of_a_kernel_that_was_swapped_are_refused_and_move_when_told(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["12"]))
    with edited(paths, tmp_path / "at") as at:
        (at / f"lib/modules/{release('12')}/updates").mkdir()
        shutil.copy(driver(at), at / f"lib/modules/{release('12')}/updates/mine.ko")
    line = refused(paths, debs["13"])
    assert f"modules of kernel {release('12')}" in line and "updates/mine.ko" in line
    plan = kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"], "--move-modules", "--dry-run")
    assert "updates/mine.ko moves to" in good(plan) and manifest(paths).kernel_release == release("12")
    out = good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"], "--move-modules"))
    assert f"built for kernel {release('12')}" in out, "nobody may believe that it will load"
    told = manifest(paths)
    assert [layer.path for layer in told.layers][:2] == ["layers/02-edit.squashfs", "layers/01-edit.squashfs"]
    assert told.layers[0].private
    with root_of(paths) as root:
        assert modprobe(root, release("13"), "mine") == ["updates/mine.ko"]
        assert modprobe(root, release("13"), "nfsv4"), "the new kernel's own are in the same index"
        assert not [path for path in (root / "lib/modules" / release("12")).rglob("*") if path.is_file()]
    is_whole(paths)
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["12"], "--move-modules"))
    with root_of(paths) as root:
        assert modprobe(root, release("12"), "mine") == ["updates/mine.ko"]


def test_an_edit_that_removed_a_kernels_folder_does_not_hide_it_when_it_comes(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    with edited(paths, tmp_path / "at") as at:
        (at / f"lib/modules/{release('13')}").mkdir()
        (at / f"lib/modules/{release('13')}/left").write_text("over\n")
        (at / f"lib/modules/{release('13')}/left").rename(at / "etc/left")
    with edited(paths, tmp_path / "at") as at:
        (at / f"lib/modules/{release('13')}").rmdir()
    assert "would hide that of kernel" in refused(paths, debs["13"])
    with edited(paths, tmp_path / "at", "--flatten") as at:
        (at / "etc/motd").write_text("flat\n")
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"]))
    is_whole(paths)
    with root_of(paths) as root:
        assert modprobe(root, release("13"), "nfsv4")


def install(at: Path, package: Path) -> None:
    """As a package manager does, with dpkg's own unpacking."""
    subprocess.run(["dpkg-deb", "-x", package, at], check=True)


def test_a_kernel_installed_in_an_edit_becomes_the_capsules_only_when_asked(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    before, new = members(paths), release("13")
    good(kit(paths, "mount", NAME, "--at", tmp_path / "at"))
    install(tmp_path / "at", debs["13"])
    (tmp_path / "at/etc/motd").write_text("edited\n")
    done = kit(paths, "umount", NAME)
    assert done.status == 1 and f"modules of kernel {new}" in done.err and "--adopt-kernel" in done.err
    assert members(paths) == before and (tmp_path / "at/etc/motd").exists(), "it is still mounted"
    good(kit(paths, "umount", NAME, "--adopt-kernel"))
    told = manifest(paths)
    assert told.kernel_release == new
    parts = changed(before, members(paths))
    assert parts == {*KERNEL_PARTS, "layers/01-edit.squashfs"}
    tree = kernel_packages.unpacked(debs["13"], tmp_path / "tree")
    assert sha256_file(tree / f"boot/vmlinuz-{new}") == members(paths)["boot/vmlinuz"]
    held = listing(paths, "layers/01-edit.squashfs")
    assert "etc/motd" in held and not any(f"modules/{new}/" in path or "vmlinuz" in path for path in held)
    is_whole(paths)
    with root_of(paths) as root:
        assert modprobe(root, new, "nfsv4")
    assert "as it would be made today" in good(kit(paths, "vnfs", "rebuild", NAME))


def test_the_kernel_of_an_edit_is_adopted_into_a_capsule_file_too(debs: dict[str, Path], tmp_path: Path) -> None:
    paths = trusting_site(tmp_path / "site") if (tmp_path / "site").mkdir() is None else None
    assert paths is not None
    good(kit(paths, "trust", "add", f"{built.author_key()}.pub"))
    file = tmp_path / "x.vnfs"
    shutil.copy(built.capsule(built.BUSYBOX), file)
    good(kit(paths, "mount", file, "--at", tmp_path / "at"))
    install(tmp_path / "at", debs["13"])
    good(kit(paths, "umount", file, "--adopt-kernel", "--key", built.author_key()))
    with open_capsule(file) as capsule:
        told = loads(capsule.read_member("capsule.toml"))
    assert told.kernel_release == release("13")
    good(kit(paths, "verify", file))


# --- rebuild


def test_a_rebuild_with_nothing_to_follow_makes_no_generation(paths: SitePaths) -> None:
    identity, here = store_of(paths).get(NAME).identity, stored(paths)
    assert f"{NAME} is as it would be made today" in good(kit(paths, "vnfs", "rebuild", "test-busybox"))
    assert store_of(paths).get(NAME).identity == identity and stored(paths) == here


def test_a_rebuild_follows_a_newer_stage_2_and_changes_the_initrd_alone(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = members(paths)
    newer_stage2(tmp_path, monkeypatch)
    plan = good(kit(paths, "vnfs", "rebuild", NAME, "--dry-run"))
    assert "stage 2 of this capsulekit is another one: init is changed" in plan and members(paths) == before
    good(kit(paths, "vnfs", "rebuild", NAME))
    assert changed(before, members(paths)) == {"boot/initrd.img"}
    tree = unpack_image(member(paths, "boot/initrd.img").read_bytes(), tmp_path / "image")
    assert (tree / "init").read_text().endswith("# of tomorrow\n")
    is_whole(paths)
    assert "as it would be made today" in good(kit(paths, "vnfs", "rebuild", NAME))
    assert "rebuild" in good(kit(paths, "vnfs", "history", NAME))
    assert sha256_bytes(member(paths, "layers/rootfs.squashfs").read_bytes()) == before["layers/rootfs.squashfs"]


def test_a_rebuild_follows_the_sites_hybridize_list_and_a_kernel_swap_keeps_what_came_of_it(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    site_list = paths.config / "vnfs" / NAME / "hybridize"
    site_list.parent.mkdir(parents=True)
    site_list.write_text("/usr/share/doc/**\n")
    done = kit(paths, "vnfs", "rebuild", NAME)
    assert done.status == 1 and "has no module nfs" in done.err
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["12"]))
    before = members(paths)
    plan = good(kit(paths, "vnfs", "rebuild", NAME, "--dry-run"))
    assert "divided anew" in plan and members(paths) == before
    good(kit(paths, "vnfs", "rebuild", NAME))
    parts = changed(before, members(paths))
    assert parts == {"layers/hybrid.squashfs", "layers/rootfs.squashfs", "boot/initrd.img", "capsule.toml"}
    assert "usr/share/doc/busybox-static/copyright" in listing(paths, "layers/hybrid.squashfs")
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"]))
    held = {one.path for one in read_image(member(paths, "boot/initrd.img"))}
    assert "usr/lib/capsulekit/hybrid.sh" in held and "layers/hybrid.squashfs" in members(paths)
    is_whole(paths)
    assert "as it would be made today" in good(kit(paths, "vnfs", "rebuild", NAME))
    without = kit(paths, "vnfs", "kernel", NAME, "--from", built.capsule(built.BUSYBOX))
    assert without.status == 1 and "a hybrid capsule needs a kernel with NFS 4" in without.err
    site_list.write_text("# nothing any more\n")
    good(kit(paths, "vnfs", "rebuild", NAME))
    assert "layers/hybrid.squashfs" not in members(paths)
    assert "usr/share/doc/busybox-static/copyright" in listing(paths, "layers/rootfs.squashfs")
