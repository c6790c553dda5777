"""Stage 2's functions in its own image, on real layers: with busybox, and with a distribution's own programs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from images import unpack_image
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
cp -a "$1/unpacked/." .
mkdir layers
cp "$1"/layers/* layers
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
cp "$1/drive" drive
[ ! -e "$1/network.squashfs" ] || cp "$1/network.squashfs" .
exec chroot . /bin/sh /drive
"""
STEPS = """
CK_SOURCED=1
. /init
trap - EXIT
mkdir -p "$ROOT"
mkdir /p # what this machine was booted with does not count
cat /proc/filesystems >/p/filesystems
echo "quiet @WORDS@" >/p/cmdline
PROC=/p
mkdir "$STACK"
mount_stack
set_acls
show_stack
chosen_init
start_init single
"""
# This kernel has no NFS and there is no card to bring up: those two are told here, all else is real.
HYBRID = """
nic_up() {
    for there in /lib/modules/its-own "$BORROWED/proc/version" "$BORROWED/sys/kernel" "$BORROWED/dev/null"; do
        [ -e "$there" ]
    done
    borrowed_modprobe --version >/dev/null || :
    chroot "$BORROWED" /bin/busybox cat /etc/low >"$STACK/u/etc-low" # the local layers as one tree
    ! (: >"$BORROWED/x") 2>/dev/null # and not to be written to
}
has_nfs4() { :; }
hybrid_until_mounted() { mount -t squashfs -o ro,loop /network.squashfs "$1"; }
"""
INIT = """#!/bin/busybox sh
PATH=/bin; export PATH
busybox cat /etc/low /etc/high
busybox ls -d /image /layers 2>/dev/null || echo gone
busybox mount | busybox grep -c " on /\\(proc\\|sys\\|dev\\|run\\) "
echo "words: $*"
getfacl -cn "/etc/odd
name"
[ ! -e /usr/share/net ] || { busybox cat /usr/share/net/file /etc-low; echo new >/usr/share/net/new && echo writable; }
[ -z "${LC_ALL:-}" ] && echo "no locale"
cd /run/capsulekit-stack && busybox stat -c "shown to %a" .
for view in n c b m; do echo "$view: $(busybox cat $view/etc/high)"; done
echo new >/etc/new && busybox ls u/etc/new m/etc/new
(: >u/etc/other) 2>/dev/null || echo "not to be written to"
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


def image(tmp_path: Path, shell: str, *, hybrid: bool) -> None:
    """Stage 2's image, made of this machine's own programs, as the kernel unpacks it."""
    tree = root_with(tmp_path / "tree", shell)
    add_kernel(tree)
    made = io.BytesIO()
    assemble_stage2(made, tree, tree, RELEASE, ("loop", "squashfs", "overlay"), 1, level=1, hybrid=hybrid)
    unpack_image(made.getvalue(), tmp_path / "unpacked")


def layers(tmp_path: Path) -> None:
    """A root of two layers, the upper one hiding a file, with an ACL."""
    root = root_with(tmp_path / "root", "busybox")
    copy_programs(root, ["usr/bin/getfacl"])
    for name in ("proc", "sys", "dev", "run"):
        (root / name).mkdir()
    (root / "usr/lib/modules/its-own").mkdir(parents=True)
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


def switched(tmp_path: Path, request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """What the new root's init said, after stage 2's steps."""
    request.addfinalizer(detach)
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", DRIVE, "sh", tmp_path]
    for _ in range(5):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if not done.stderr.startswith("losetup: "):  # another program took the loop device that was just found free
            break
    return done


@pytest.mark.parametrize("shell", ["busybox", "dash", "bash"])
def test_the_stack_is_mounted_its_acls_set_and_the_root_switched(
    shell: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image(tmp_path, shell, hybrid=False)
    layers(tmp_path)
    (tmp_path / "drive").write_text(STEPS.replace("@WORDS@", "ck.overlay-size=20m"))
    done = switched(tmp_path, request)
    said = done.stdout.splitlines()
    assert said[:5] == ["low", "high", "gone", "4", "words: single"], done.stderr
    assert {"user::rw-", "user:70000:r--", "other::---", "no locale"} <= set(said)
    # What the agent compares: the node's layer, the capsule's, both, and what is seen and written now.
    assert said[-8:] == [
        "shown to 700", "n: high", "c: hidden", "b: high", "m: high", "m/etc/new", "u/etc/new", "not to be written to",
    ]  # fmt: skip


@pytest.mark.parametrize("shell", ["busybox", "dash", "bash"])
def test_a_network_layer_lies_below_all_others_and_nothing_borrowed_stays(
    shell: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image(tmp_path, shell, hybrid=True)
    layers(tmp_path)
    network = files(tmp_path / "network", low="never seen: a local layer has it\n", high="nor this\n")
    (network / "usr/share/net").mkdir(parents=True)
    (network / "usr/share/net/file").write_text("from the network\n")
    layer(network, tmp_path / "network.squashfs")
    steps = STEPS.replace("@WORDS@", "ck.hybrid=nfs4:10.0.0.1:/x").replace("mkdir /p", HYBRID + "mkdir /p")
    (tmp_path / "drive").write_text(steps.replace("set_acls\n", "cat /proc/mounts\nset_acls\n"))
    done = switched(tmp_path, request)
    mounts, _, rest = done.stdout.partition("low\n")
    assert rest.splitlines()[:4] == ["high", "gone", "4", "words: single"], done.stderr
    assert {"from the network", "low", "writable", "no locale"} <= set(rest.splitlines())
    places = [line.split()[1] for line in mounts.splitlines()]
    assert "/s/h" in places and "/sysroot" in places, "the network layer, and the overlay on it"
    assert not [place for place in places if place.startswith(("/s/b", "/lib/", "/usr/lib/"))]


@pytest.mark.parametrize("shell", ["busybox", "dash"])
@pytest.mark.parametrize("damage", ["zeros", "cut"])
def test_a_damaged_layer_is_named_with_the_reason(
    shell: str, damage: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image(tmp_path, shell, hybrid=False)
    layers(tmp_path)
    whole = (tmp_path / "layers/rootfs.squashfs").read_bytes()
    (tmp_path / "layers/rootfs.squashfs").write_bytes(bytes(len(whole)) if damage == "zeros" else whole[:8192])
    (tmp_path / "drive").write_text(STEPS.replace("@WORDS@", "").replace("trap - EXIT", "trap stop_here EXIT").replace(
        "mkdir /p", 'stop_here() { echo "stopped at $DOING: $(complaint)"; }\nmkdir /p'))  # fmt: skip
    done = switched(tmp_path, request)
    assert done.returncode != 0
    (said,) = done.stdout.splitlines()
    assert said.startswith("stopped at mounting layer rootfs.squashfs: mount: ") and "/s/1" in said
