"""Stage 2's functions in its own image, on real layers: with busybox, and with a distribution's own programs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from initramfs_builder.stage2 import assemble_stage2
from own_programs import RELEASE, add_kernel, copy_programs, root_with

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
    pytest.mark.skipif(not shutil.which("setfacl"), reason="needs setfacl"),
]

# A mount and a process namespace that end with the script. The image is a tmpfs, as the kernel's initramfs is one.
# stage 2's last step needs to be process 1: busybox's switch_root says so. Its main() is never called here: it may
# reboot the machine.
DRIVE = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/image"
cd "$1/image"
cpio -i --quiet <"$1/cpio"
mkdir layers
cp "$1"/layers/* layers
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
cp "$1/drive" drive
exec chroot . /bin/sh /drive
"""
STEPS = """
CK_SOURCED=1
. /init
trap - EXIT
mkdir -p "$ROOT" "$STACK"
mount -t tmpfs -o mode=755,size=50% tmpfs "$STACK"
mount_stack
for acl_file in "$LAYERS"/*.acl; do apply_acls "$acl_file"; done
karg_init >/dev/null
move_mounts
exec switch_root "$ROOT" /sbin/init
"""
INIT = """#!/bin/busybox sh
PATH=/bin; export PATH
busybox cat /etc/low /etc/high
busybox ls -d /image /layers 2>/dev/null || echo gone
busybox mount | busybox grep -c " on /\\(proc\\|sys\\|dev\\|run\\) "
getfacl -cn "/etc/odd
name"
"""


def layer(folder: Path, out: Path) -> None:
    subprocess.run(["mksquashfs", folder, out, "-quiet", "-no-progress", "-noappend"], check=True, capture_output=True)


def files(root: Path, **texts: str) -> Path:
    (root / "etc").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / "etc" / name).write_text(text)
    return root


def detach() -> None:
    """The image's loop devices outlive its root, as they should on a node; here they are left over."""
    listed = subprocess.run(["losetup", "-nO", "NAME,BACK-FILE"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        name, _, file = line.partition(" ")
        if file.strip().startswith("/layers/"):
            subprocess.run(["losetup", "-d", name], check=False)


@pytest.mark.parametrize("shell", ["busybox", "dash", "bash"])
def test_the_stack_is_mounted_its_acls_set_and_the_root_switched(
    shell: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tree = root_with(tmp_path / "tree", shell)
    add_kernel(tree)
    image = io.BytesIO()
    assemble_stage2(image, tree, tree, RELEASE, ("loop", "squashfs", "overlay"), 1, level=1)
    (tmp_path / "cpio").write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(image.getvalue()))

    root = root_with(tmp_path / "root", "busybox")
    copy_programs(root, ["usr/bin/getfacl"])
    for name in ("proc", "sys", "dev", "run"):
        (root / name).mkdir()
    files(root, low="low\n", high="hidden\n")
    (root / "etc/odd\nname").write_text("x")
    (root / "sbin/init").write_text(INIT)
    (root / "sbin/init").chmod(0o755)
    (tmp_path / "layers").mkdir()
    (tmp_path / "image").mkdir()
    layer(root, tmp_path / "layers/rootfs.squashfs")
    layer(files(tmp_path / "top", high="high\n"), tmp_path / "layers/top.squashfs")
    (tmp_path / "layers/order").write_text("top.squashfs\nrootfs.squashfs\n")
    (tmp_path / "layers/rootfs.acl").write_text("etc/odd%0Aname\taccess\tu::rw-,u:70000:r--,g::r--,m::r--,o::---\n")
    (tmp_path / "drive").write_text(STEPS)

    request.addfinalizer(detach)
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", DRIVE, "sh", tmp_path]
    for _ in range(5):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if not done.stderr.startswith("losetup: "):  # another program took the loop device that was just found free
            break
    said = done.stdout.splitlines()
    assert said[:4] == ["low", "high", "gone", "4"], done.stderr
    assert {"user::rw-", "user:70000:r--", "other::---"} <= set(said)
