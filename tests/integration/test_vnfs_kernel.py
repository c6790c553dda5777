"""Another kernel for an installed capsule, and what umount and rebuild do about kernels, modules and the initrd."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import built
import kernel_packages
import pytest
from asking_capsule import kit, stored
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
    members,
    modprobe,
    paths,
    refused,
    release,
    root_of,
)
from small_capsule import AUTHOR, STRANGER
from told_capsule import Node, write_layer

from capsulekit.capsule.manifest import Layer, loads
from capsulekit.capsule.read import open_capsule
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.edit.mounts import mounts_in
from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths

__all__ = ["debs", "installed", "paths"]  # the fixtures
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts layers")


# --- from packages


def test_a_kernel_package_changes_kernel_modules_and_initrd_and_nothing_else(
    paths: SitePaths, debs: dict[str, Path]
) -> None:
    before, told, new = members(paths), manifest(paths), release("13")
    here = stored(paths)
    plan = good(kit(paths, "vnfs", "kernel", "test-busybox", "--from", debs["13"], "--dry-run"))
    assert f"would get the kernel {new}" in plan and stored(paths) == here and members(paths) == before
    out = good(kit(paths, "vnfs", "kernel", "test-busybox", "--from", debs["13"]))
    assert f"kernel {told.kernel_release} → {new} from kernel.deb" in out
    assert changed(before, members(paths)) == KERNEL_PARTS
    after = manifest(paths)
    assert after.kernel_release == new and [la.path for la in after.layers] == [la.path for la in told.layers]
    assert not any(layer.private for layer in after.layers), "a package's modules are everybody's"
    held = listing(paths)
    assert f"lib/modules/{new}/modules.dep.bin" in held and told.kernel_release not in str(held.keys())
    is_whole(paths)
    with root_of(paths) as root:
        assert modprobe(root, new, "nfsv4"), "the module is found on the node"
    history = good(kit(paths, "vnfs", "history", NAME))
    assert "kernel" in history and f"{told.kernel_release} → {new}" in history
    again = good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"]))
    assert "has this kernel" in again and "nothing to do" in again


def test_rollback_takes_the_old_kernel_back(paths: SitePaths, debs: dict[str, Path]) -> None:
    before = members(paths)
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"]))
    good(kit(paths, "-y", "vnfs", "rollback", NAME))
    assert members(paths) == before


def test_the_same_packages_make_the_same_bytes(paths: SitePaths, debs: dict[str, Path]) -> None:
    good(kit(paths, "vnfs", "clone", NAME, "other"))
    for name in (NAME, "other"):
        good(kit(paths, "vnfs", "kernel", name, "--from", debs["13"]))
    assert {members(paths)[one] for one in KERNEL_PARTS} == {members(paths, "other")[one] for one in KERNEL_PARTS}


def test_rpm_packages_that_belong_together_are_one_kernel(paths: SitePaths, debs: dict[str, Path]) -> None:
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"]))
    words = [word for path in kernel_packages.rpms() for word in ("--from", path)]
    good(kit(paths, "vnfs", "kernel", NAME, *words))
    assert manifest(paths).kernel_release == release("12")
    is_whole(paths)
    with root_of(paths) as root:
        assert modprobe(root, release("12"), "nfsv4") and modprobe(root, release("12"), "virtio_net")


# --- from capsules


def test_the_kernel_of_a_capsule_file_comes_byte_for_byte(paths: SitePaths, debs: dict[str, Path]) -> None:
    before = members(paths)
    good(kit(paths, "vnfs", "kernel", NAME, "--from", debs["13"]))
    good(kit(paths, "vnfs", "kernel", NAME, "--from", built.capsule(built.BUSYBOX)))
    assert members(paths) == before, "image and modules are the file's, and the initrd is what its author had made"


def test_the_kernel_of_an_installed_capsule_is_shared(paths: SitePaths, debs: dict[str, Path]) -> None:
    good(kit(paths, "vnfs", "clone", NAME, "newer"))
    good(kit(paths, "vnfs", "kernel", "newer", "--from", debs["13"]))
    blobs = {path for path in stored(paths) if path.startswith("blobs/")}
    good(kit(paths, "vnfs", "kernel", NAME, "--from", "newer"))
    parts = KERNEL_PARTS - {"capsule.toml"}
    assert {members(paths)[one] for one in parts} == {members(paths, "newer")[one] for one in parts}
    new = {path for path in stored(paths) if path.startswith("blobs/")} - blobs
    assert sum((paths.state / path).stat().st_size for path in new) < 100_000, "no layer is stored twice"


def merged_capsule(out: Path, signer: object = AUTHOR) -> Path:
    """The small capsule with a merged /usr, and firmware beside its modules."""
    parts: dict[str, bytes] = {}
    with open_capsule(built.capsule(built.BUSYBOX)) as capsule:
        told = loads(capsule.read_member("capsule.toml"))
        for name in ("recipe.toml", "capsule.lock", "boot/vmlinuz", "boot/initrd.img", "layers/modules.squashfs"):
            parts[name] = b"".join(capsule.chunks(name))
    work = out.parent / "merged"
    work.mkdir()
    (work / "old.squashfs").write_bytes(parts.pop("layers/modules.squashfs"))
    subprocess.run(["unsquashfs", "-q", "-n", "-d", work / "x", work / "old.squashfs"], check=True)
    nodes = {
        f"usr/{path.relative_to(work / 'x')}": Node(path.read_bytes())
        for path in (work / "x").rglob("*.*")
        if path.is_file()
    }
    nodes["usr/lib/firmware/nic.bin"] = Node(b"firmware of a card")
    files = {
        "layers/modules.squashfs": write_layer(work / "modules.squashfs", nodes),
        "layers/rootfs.squashfs": write_layer(
            work / "rootfs.squashfs",
            {
                "lib": Node(link="usr/lib"),
                "sbin": Node(link="usr/sbin"),
                "usr/sbin/init": Node(b"#!/bin/sh\n", mode=0o755),
            },
        ),
    }
    layers = tuple(Layer(name, file.stat().st_size, sha256_file(file), 1) for name, file in files.items())
    told = replace(told, name="merged", layers=layers)
    sources: dict[str, Path | bytes] = {**parts, **files}
    write_capsule(out, told, [Member(name, source) for name, source in sources.items()], signer)  # type: ignore[arg-type]
    return out


def test_modules_go_where_the_root_looks_for_them_and_firmware_stays(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    good(kit(paths, "vnfs", "import", merged_capsule(tmp_path / "m.vnfs")))
    name = "merged-1.amd64"
    good(kit(paths, "vnfs", "kernel", name, "--from", debs["13"]))
    held = listing(paths, name=name)
    assert f"usr/lib/modules/{release('13')}/modules.dep" in held and "lib" not in held
    assert "usr/lib/firmware/nic.bin" in held, "no package brings it, and the card still needs it"
    good(kit(paths, "vnfs", "kernel", name, "--from", NAME))
    held = listing(paths, name=name)
    assert f"usr/lib/modules/{release('12')}/modules.dep" in held and "lib" not in held
    is_whole(paths, name)
    with root_of(paths, name) as root:
        assert modprobe(root, release("12"), "overlay")


# --- refusals


def kernel_less(tmp_path: Path, links: dict[str, str] | None = None, arch: str = "amd64") -> Path:
    """A package without a kernel, or with links where a kernel has folders."""
    tree = tmp_path / "tree"
    (tree / "usr/share").mkdir(parents=True)
    for place, target in (links or {}).items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).symlink_to(target)
    return kernel_packages.build_deb(tree, "tool", tmp_path / "tool.deb", arch)


def test_what_is_no_kernel_for_it_is_refused_in_one_line(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    assert "bring 2 kernels instead of one" in refused(paths, debs["12"], debs["13"])
    assert "bring 0 kernels instead of one: tool.deb" in refused(paths, kernel_less(tmp_path / "a"))
    foreign = kernel_less(tmp_path / "b", arch="arm64")
    assert "tool.deb is for arm64, and the capsule is for amd64" in refused(paths, foreign)
    assert "there is no file nowhere.deb" in refused(paths, "nowhere.deb")
    assert "from packages or from one capsule" in refused(paths, debs["13"], built.capsule(built.BUSYBOX))
    assert "no capsule" in refused(paths, "nobody")
    core = next(path for path in kernel_packages.rpms() if path.name.startswith("kernel-modules-6"))
    assert "bring 0 kernels" in refused(paths, core)


def test_damaged_and_hostile_files_are_refused_and_touch_nothing(paths: SitePaths, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "modules").mkdir(parents=True)
    for number, place in enumerate(("usr/lib", "boot", "lib/modules", "usr")):
        folder = tmp_path / str(number)
        tree = folder / "tree"
        (tree / place).parent.mkdir(parents=True)
        (tree / place).symlink_to(host)
        package = kernel_packages.build_deb(tree, "evil", folder / "evil.deb")
        assert f"have a link at /{place}" in refused(paths, package)
    assert sorted(path.name for path in host.rglob("*")) == ["modules"]
    tree = tmp_path / "image/tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/vmlinuz-1.2.3").symlink_to("/etc/shadow")
    (tree / "lib/modules/1.2.3").mkdir(parents=True)
    evil = kernel_packages.build_deb(tree, "evil", tmp_path / "image/evil.deb")
    assert "the image of kernel 1.2.3 is no file" in refused(paths, evil)
    for name, data in (("cut.deb", b"!<arch>\nrubbish"), ("cut.rpm", b"\xed\xab\xee\xdb rubbish"), ("x.vnfs", b"x")):
        (tmp_path / name).write_bytes(data)
        refused(paths, tmp_path / name, status=3 if name == "x.vnfs" else 1)


def test_a_capsule_file_must_be_signed_by_somebody_trusted_here(paths: SitePaths, tmp_path: Path) -> None:
    stranger = merged_capsule(tmp_path / "s.vnfs", STRANGER)
    assert "which is not trusted here" in refused(paths, stranger, status=3)


def test_a_capsule_that_is_being_edited_keeps_its_kernel(
    paths: SitePaths, debs: dict[str, Path], tmp_path: Path
) -> None:
    good(kit(paths, "mount", NAME, "--at", tmp_path / "at"))
    assert "is mounted for editing by" in refused(paths, debs["13"])
    done = kit(paths, "vnfs", "rebuild", NAME)
    assert done.status == 1 and "is mounted for editing by" in done.err
    good(kit(paths, "-y", "close", NAME))


# --- killed


@pytest.mark.long
def test_killed_at_any_moment_the_old_kernel_or_the_new_one_is_whole(paths: SitePaths, debs: dict[str, Path]) -> None:
    base = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
    words = ["vnfs", "kernel", NAME, "--from", str(debs["13"])]
    argv = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()", *base, *words]
    old, landed, chance = members(paths), 0, random.Random(6)
    start = time.monotonic()
    subprocess.run([*argv, "--dry-run"], check=True, capture_output=True)
    length = time.monotonic() - start
    for _ in range(8):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1 * length, 1.1 * length))
        process.kill()
        landed += process.wait(timeout=60) < 0
        assert (members(paths) == old) == (manifest(paths).kernel_release != release("13"))
        good(kit(paths, *words))
        is_whole(paths)
        assert manifest(paths).kernel_release == release("13")
        assert not list(paths.state.glob("vnfs/*/.layer-*")) and not list((paths.state / "views").iterdir())
        assert not list(mounts_in(paths.state))
        good(kit(paths, "vnfs", "kernel", NAME, "--from", built.capsule(built.BUSYBOX)))
        assert members(paths) == old
    assert landed >= 3, "most were done before"
