"""Stage 2: the capsule's own initrd; it stacks the layers and switches root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from initramfs_builder.archive import Archive, Report, pack
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage import add_applets, add_modules, add_programs, add_shell, add_skeleton, check_commands
from initramfs_builder.tree import Tree

DEFAULT_LEVEL = 9


def assemble_stage2(
    out: BinaryIO,
    tree: Path,
    kernel_tree: Path,
    release: str,
    modules: Sequence[str],
    binaries: Sequence[str],
    applets: Sequence[str],
    mtime: int,
    level: int = DEFAULT_LEVEL,
    shell: Path | None = None,
) -> Report:
    """Write boot/initrd.img: one zstd frame with one newc archive, padded to 4 bytes so that layers can follow it.

    The arguments are those of stage1.assemble, and so are the promises.
    """
    boot = Tree(tree)
    scripts = shell or shell_dir("stage2")
    archive = Archive()
    add_skeleton(archive)
    add_programs(archive, boot, binaries)
    add_applets(archive, boot, binaries, applets)
    missing = add_modules(archive, kernel_tree, release, modules)
    add_shell(archive, scripts)
    check_commands(archive, scripts)
    return pack(out, archive, mtime, level, missing)
