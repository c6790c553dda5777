"""Trees to pack, and a capsule's layers mounted as a node mounts them: by stage 2's own functions."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from initramfs_builder.resources import shell_dir
from own_programs import RELEASE, add_kernel, root_with

OS_RELEASE = 'NAME="Test"\nID=testos\nVERSION_ID="7.2"\n'
STACK = """
set -eu
CK_SOURCED=1
. "$1"
mkdir -p "$ROOT" "$STACK"
mount_stack
for acl_file in "$LAYERS"/*.acl; do [ ! -f "$acl_file" ] || apply_acls "$acl_file"; done
"""


def packable(root: Path, shell: str = "busybox") -> Path:
    """The least that can be packed: stage 2's programs, a kernel that is only called one, an init, os-release."""
    root_with(root, shell)
    add_kernel(root)
    for folder in ("boot", "dev", "etc", "proc", "run", "sys", "tmp", "var/tmp"):
        (root / folder).mkdir(parents=True)
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(b"kernel " * 1000)
    (root / f"boot/System.map-{RELEASE}").write_bytes(b"symbols")
    (root / "etc/os-release").write_text(OS_RELEASE)
    (root / "sbin/init").write_text("#!/bin/sh\nexec sleep 1000\n")
    (root / "sbin/init").chmod(0o755)
    return root


@contextmanager
def mounted(capsule: Path, folder: Path) -> Iterator[Path]:
    """The capsule's layers below an overlay, ACLs set; needs root, and room in a tmpfs for what has an ACL."""
    folder.mkdir()
    subprocess.run(["tar", "xf", capsule, "-C", folder], check=True)
    layers = tomllib.loads((folder / "capsule.toml").read_text())["layers"]
    order = "".join(Path(layer["path"]).name + "\n" for layer in layers)
    (folder / "layers/order").write_text(order)
    # Options of a mount end at one page: short paths.
    root, stack = folder / "root", folder / "s"
    places_of = {
        "CK_ROOT": root,
        "CK_LAYERS": folder / "layers",
        "CK_STACK": stack,
        "CK_LIB": shell_dir("stage2") / "lib",
    }
    env = {**os.environ, "CK_SAID": str(folder / "said"), **{name: str(path) for name, path in places_of.items()}}
    places = [root, *(stack / str(number) for number in range(len(layers))), stack]
    try:
        # On a node nobody else takes loop devices; here another program may be quicker between finding and taking one.
        for attempts_left in (4, 3, 2, 1, 0):
            argv = ["sh", "-c", STACK, "sh", shell_dir("stage2") / "init"]
            if subprocess.run(argv, check=not attempts_left, env=env).returncode == 0:
                break
            _unmount(places, folder)
        yield root
    finally:
        _unmount(places, folder)


def _unmount(places: list[Path], folder: Path) -> None:
    for place in places:
        if place.is_mount():
            subprocess.run(["umount", place], check=True)
    assert f"{folder}/" not in Path("/proc/mounts").read_text()
    _free_loops(folder)


def _free_loops(folder: Path) -> None:
    """stage 2 leaves its loop devices to the node's whole life."""
    listed = subprocess.run(["losetup", "-nO", "NAME,BACK-FILE"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        name, _, file = line.partition(" ")
        if file.strip().startswith(f"{folder}/"):
            subprocess.run(["losetup", "-d", name], check=False)
