"""Stage 1: the small system that fetches, verifies and prepares a capsule, and hands over to it by kexec."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from initramfs_builder import cpio, record
from initramfs_builder.archive import Archive
from initramfs_builder.compress import compression_for
from initramfs_builder.microcode import early_entries
from initramfs_builder.modules import ModuleTree
from initramfs_builder.pack import Packing, Report, check_level, pack
from initramfs_builder.patterns import Patterns
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage import (
    Modules,
    add_applets,
    add_modules,
    add_paths,
    add_programs,
    add_shell,
    add_skeleton,
    check_commands,
    modprobe_of,
)
from initramfs_builder.store import Store, passing
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

    ``arch`` is the distribution's word for the machine, ``profile`` the name of the hardware it is for. ``binaries``:
    paths of programs in the tree. ``modules``: names, aliases or globs (see ModuleTree.closure). ``applets``: busybox's
    commands wanted in PATH. ``files``: further files or folders of the tree, taken as they are. ``firmware``: files
    below lib/firmware beside what the modules name. ``microcode``: files below lib/firmware/{amd,intel}-ucode, for the
    front of the image. The last three and ``modules`` may have exceptions (see Patterns).
    """

    arch: str
    profile: str
    binaries: tuple[str, ...]
    modules: tuple[str, ...]
    applets: tuple[str, ...]
    files: tuple[str, ...] = ()
    firmware: tuple[str, ...] = ()
    microcode: tuple[str, ...] = ()


def assemble(
    out: BinaryIO,
    tree: Path,
    kernel_tree: Path,
    release: str,
    config: Stage1Config,
    mtime: int,
    level: int = DEFAULT_LEVEL,
    shell: Path | None = None,
    store: Store | None = None,
) -> Report:
    """Write stage1.img (see pack), compressed as the kernel can unpack it, padded to 4 bytes.

    ``tree`` and ``kernel_tree`` are folders of extracted packages (depmod has run on the latter), ``mtime`` is in
    seconds since the epoch, ``shell`` replaces the shipped shell files, ``store`` keeps what is compressed. The same
    input gives the same bytes, with or without a store. Raises CapsulekitError when anything is missing or a command
    that the shell needs is not in the image.
    """
    check_level(level)
    boot = Tree(tree)
    scripts = shell or shell_dir("stage1")
    archive = Archive()
    add_skeleton(archive)
    for path, text in SMALL_FILES.items():
        archive.add(cpio.regular(path, text))
    add_programs(archive, boot, config.binaries)
    add_applets(archive, boot, config.binaries, config.applets)
    add_paths(archive, boot, Patterns((*config.files, *(path for path in WHEN_PRESENT if boot.resolve(path)))))
    add_shell(archive, scripts)
    check_commands(archive, scripts)
    kernel = ModuleTree(kernel_tree, release)
    compression, remark = compression_for(kernel.tree, release)
    early = early_entries((boot, kernel.tree), Patterns(config.microcode))
    with nullcontext(store) if store else passing() as kept:
        wanted = Modules(config.modules, config.firmware, (boot,))
        firmware, remarks = add_modules(archive, kernel, wanted, modprobe_of(boot, config.binaries), kept, level)
        asked = Patterns(config.modules).wanted
        commands = (*(path.rpartition("/")[2] for path in config.binaries), *config.applets)
        told = record.record(config.arch, config.profile, release, commands, asked, firmware.missing)
        archive.add(cpio.regular(record.PATH, told))
        report = pack(out, archive, Packing(mtime, level, compression, kept, early))
    return replace(report, missing=firmware.missing, remarks=(*([remark] if remark else ()), *remarks), record=told)
