"""A small root made of this machine's own programs, for whatever takes its programs out of a root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from initramfs_builder.elf import find_closure
from initramfs_builder.tree import Tree

RELEASE = "6.1.0-test"
# What stage 2 asks for where there is no busybox, that of a hybrid capsule included.
STAGE2 = (
    "usr/bin/cat", "usr/bin/chmod", "usr/bin/mkdir", "usr/bin/sleep", "usr/bin/stat", "usr/bin/mount", "usr/bin/tr",
    "usr/bin/umount", "usr/bin/setfacl", "usr/sbin/chroot", "usr/sbin/ip", "usr/sbin/losetup", "usr/sbin/modprobe",
    "usr/sbin/switch_root",
)  # fmt: skip


def merged_root(root: Path) -> Path:
    """The folders and links of a root with a merged /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    return root


def copy_programs(root: Path, programs: Iterable[str]) -> None:
    """Copy programs of this machine and all they load into ``root`` (merged), links as links."""
    found = find_closure(Tree(Path("/")), programs)
    for path, one in found.files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one.host, target)
        for link, to in one.links.items():
            (root / link).parent.mkdir(parents=True, exist_ok=True)
            if not (root / link).is_symlink():
                (root / link).symlink_to(to)
    for path, to in found.links.items():
        (root / path).symlink_to(to)


def root_with(folder: Path, shell: str) -> Path:
    """A root with stage 2's programs: ``shell`` is busybox (then that and setfacl is all), dash or bash."""
    root = merged_root(folder)
    if shell == "busybox":
        copy_programs(root, ["usr/bin/busybox", "usr/bin/setfacl"])
        return root
    copy_programs(root, [*STAGE2, f"usr/bin/{shell}"])
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to(shell)
    return root


def add_kernel(root: Path, release: str = RELEASE) -> None:
    """Modules that are real ELF files without code, with aliases and one wanting the other, indexed by depmod."""
    folder = root / "usr/lib/modules" / release
    infos = {
        "kernel/drivers/block/loop.ko": ["license=GPL", "alias=block-major-7-*"],
        "kernel/fs/squashfs/squashfs.ko": ["license=GPL", "alias=fs-squashfs", "softdep=pre: loop"],
        "kernel/fs/overlayfs/overlay.ko": ["license=GPL", "alias=fs-overlay", "softdep=pre: squashfs"],
        "kernel/drivers/net/other.ko": ["license=GPL", "alias=pci:v00001AF4d00001000sv*sd*bc*sc*i*"],
    }
    for name, lines in infos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source = '.section .modinfo,"a"\n' + "".join(f'.asciz "{line}"\n' for line in lines)
        argv = ["gcc", "-c", "-x", "assembler", "-", "-o", str(folder / name)]
        subprocess.run(argv, input=source.encode(), check=True)
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/lib/zlib.ko\n")
    (folder / "modules.order").write_text("".join(f"{name}\n" for name in infos))
    subprocess.run(["depmod", "-b", str(root), release], check=True)
