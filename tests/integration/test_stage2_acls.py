"""ACL lists of several layers: stage 2 and a mount for editing set the same, from the lowest layer's list up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from edit_stack import attributes_of
from initramfs_builder.resources import shell_dir

from capsulekit.edit import acls

DRIVE = """
set -eu
CK_SOURCED=1
. "$1"
trap - EXIT
set_acls
"""
LISTS = {
    "rootfs": "both\taccess\tu::rw-,u:5:r--,g::r--,m::r--,o::r--\n"
    "d\tdefault\tu::rwx,u:5:r-x,g::r-x,m::r-x,o::r-x\n"
    "gone\taccess\tu::rw-,u:5:r--,g::r--,m::r--,o::r--\n"
    "link/inside\taccess\tu::rw-,u:5:rw-,g::r--,m::rw-,o::r--\n"
    "link\taccess\tu::rw-,u:5:rw-,g::r--,m::rw-,o::r--\n"
    "no-folder\tdefault\tu::rwx,u:5:r-x,g::r-x,m::r-x,o::r-x\n"
    "plain\taccess\tu::rw-,u:5:r--,g::r--,m::r--,o::r--\n",
    "01-edit": "both\taccess\tu::rw-,u:6:r--,g::r--,m::r--,o::r--\nplain\taccess\tu::rw-,g::r--,o::---\n",
    "02-edit": "d\tdefault\t\n",
}


def tree(root: Path) -> Path:
    """What a stack shows: among others a link in the place of a folder that had an ACL in it."""
    (root / "d").mkdir(parents=True)
    (root / "other").mkdir()
    for name in ("both", "plain", "no-folder", "other/inside"):
        (root / name).write_text(name)
        (root / name).chmod(0o644)
    (root / "plain").chmod(0o640)
    (root / "link").symlink_to("other")
    return root


def held(root: Path) -> dict[str, tuple[int, dict[str, bytes]]]:
    """Mode and attributes of every path."""
    return {str(p.relative_to(root)): (p.lstat().st_mode, attributes_of(p)) for p in sorted(root.rglob("*"))}


@pytest.mark.parametrize("shell", ["busybox sh", "dash", "bash"])
def test_the_topmost_list_has_the_last_word(shell: str, tmp_path: Path) -> None:
    """Whatever the names of the lists: 01-edit lies above rootfs."""
    layers, root = tmp_path / "layers", tree(tmp_path / "root")
    layers.mkdir()
    for name, text in LISTS.items():
        (layers / f"{name}.acl").write_text(text)
    (layers / "order").write_text("02-edit.squashfs\n01-edit.squashfs\nmodules.squashfs\nrootfs.squashfs\n")
    env = {**os.environ, "CK_ROOT": str(root), "CK_LAYERS": str(layers), "CK_SAID": str(tmp_path / "said"),
           "CK_LIB": str(shell_dir("stage2") / "lib")}  # fmt: skip
    argv = [*shell.split(), "-c", DRIVE, "sh", shell_dir("stage2") / "init"]
    subprocess.run(argv, env=env, check=True)
    mounted = tree(tmp_path / "mounted")
    acls.apply(mounted, acls.effective([LISTS[name].encode() for name in ("02-edit", "01-edit", "rootfs")]))
    assert held(root) == held(mounted)
    with_acl = {path for path, (_, attributes) in held(root).items() if attributes}
    assert with_acl == {"both"}
    shown = subprocess.run(["getfacl", "-cn", root / "both"], capture_output=True, text=True, check=True).stdout
    assert "user:6:r--" in shown and "user:5" not in shown
