"""Stage 1: the small system that fetches, verifies and prepares a capsule, and hands over to it by kexec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from initramfs_builder import cpio
from initramfs_builder.archive import Archive, Report, pack
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage import add_applets, add_modules, add_programs, add_shell, add_skeleton, check_commands
from initramfs_builder.tree import Tree

DEFAULT_LEVEL = 9
# Programs look up root and localhost; glibc is told to ask files, then DNS.
SMALL_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/hosts": b"127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
}
# libcrypto complains without its configuration, where it was built to look for one.
WHEN_PRESENT = ("usr/lib/ssl/openssl.cnf",)


@dataclass(frozen=True)
class Stage1Config:
    """What goes into stage 1, all of it from the boot tree and the kernel tree.

    ``binaries``: paths of programs in the tree. ``modules``: names, aliases or globs (see ModuleTree.closure).
    ``applets``: busybox's commands wanted in PATH. ``files``: further files or folders of the tree, taken as they are.
    """

    binaries: tuple[str, ...]
    modules: tuple[str, ...]
    applets: tuple[str, ...]
    files: tuple[str, ...] = ()


def assemble(
    out: BinaryIO,
    tree: Path,
    kernel_tree: Path,
    release: str,
    config: Stage1Config,
    mtime: int,
    level: int = DEFAULT_LEVEL,
    shell: Path | None = None,
) -> Report:
    """Write stage1.img: one zstd frame with one newc archive, padded to 4 bytes.

    ``tree`` and ``kernel_tree`` are folders of extracted packages (depmod has run on the latter), ``mtime`` is in
    seconds since the epoch, ``shell`` replaces the shipped shell files. The same input gives the same bytes.
    Raises CapsulekitError when anything is missing or a command that the shell needs is not in the image.
    """
    boot = Tree(tree)
    scripts = shell or shell_dir("stage1")
    archive = Archive()
    add_skeleton(archive)
    for path, text in SMALL_FILES.items():
        archive.add(cpio.regular(path, text))
    add_programs(archive, boot, config.binaries)
    add_applets(archive, boot, config.binaries, config.applets)
    for path in (*config.files, *(path for path in WHEN_PRESENT if boot.resolve(path))):
        archive.add_path(boot, path)
    missing = add_modules(archive, kernel_tree, release, config.modules)
    add_shell(archive, scripts)
    check_commands(archive, scripts)
    return pack(out, archive, mtime, level, missing)
