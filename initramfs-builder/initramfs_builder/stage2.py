"""Stage 2: the capsule's own initrd; it stacks the layers and switches root.

Its programs come from a tree of any distribution. Where there is a busybox, that is nearly all; otherwise every command
its shell needs is taken from the tree with what it loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from initramfs_builder import cpio
from initramfs_builder.archive import Archive
from initramfs_builder.compress import Compression, compression_for
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.modules import ModuleTree
from initramfs_builder.pack import Packing, Report, pack
from initramfs_builder.resources import shell_dir
from initramfs_builder.stage import (
    Modules,
    add_applets,
    add_modules,
    add_programs,
    add_shell,
    add_skeleton,
    check_commands,
    known_applets,
    modprobe_of,
    needed_commands,
)
from initramfs_builder.store import passing
from initramfs_builder.tree import Found, Tree

DEFAULT_LEVEL = 9
BUSYBOX = "usr/bin/busybox"
HYBRID_SHELL = "stage2-hybrid"
# For whoever ends up in the shell of an initrd with busybox; they cost a link each.
HANDY = (
    "chown", "cp", "cut", "date", "dd", "dmesg", "echo", "env", "find", "grep", "head", "kill", "ln", "ls", "mknod",
    "mv", "poweroff", "printf", "readlink", "reboot", "rm", "rmdir", "sed", "sync", "tail", "test", "touch", "tr",
    "umount", "uname", "wc",
)  # fmt: skip
# What may stand for a command under another name, best first.
STAND_INS = {"sh": ("dash", "bash")}
# For the way out: which packages bring a command, as most distributions call them.
COREUTILS = "coreutils or busybox"
PACKAGES = {
    "ip": "iproute2 (RPM: iproute) or busybox",
    "losetup": "util-linux (Debian: mount) or busybox",
    "modprobe": "kmod or busybox",
    "mount": "util-linux (Debian: mount) or busybox",
    "setfacl": "acl",
    "sh": "bash, dash or busybox",
    "switch_root": "util-linux or busybox",
}


@dataclass(frozen=True)
class Programs:
    """Where stage 2's commands come from: paths in the tree, busybox's applets, and links to stand-ins."""

    binaries: tuple[str, ...]
    applets: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


def assemble_stage2(
    out: BinaryIO,
    tree: Path,
    kernel_tree: Path,
    release: str,
    modules: Sequence[str],
    mtime: int,
    level: int = DEFAULT_LEVEL,
    shell: Path | None = None,
    hybrid: bool = False,
    compression: Compression | None = None,
) -> Report:
    """Write boot/initrd.img (see pack), padded to 4 bytes so that layers can follow it.

    The arguments are those of stage1.assemble, and so are the promises. ``hybrid`` adds what mounts a network layer;
    ``compression`` is one that the kernel is known to unpack, where its configuration is not in ``kernel_tree``.
    Raises CapsulekitError also when the tree lacks a command, naming the packages that bring it.
    """
    boot = Tree(tree)
    folders = [shell or shell_dir("stage2"), *([shell_dir(HYBRID_SHELL)] if hybrid else [])]
    commands = [command for folder in folders for _, command in needed_commands(folder)]
    programs = find_programs(boot, ["sh", *commands])
    archive = Archive()
    add_skeleton(archive)
    add_programs(archive, boot, _with_interpreters(boot, programs.binaries))
    add_applets(archive, boot, programs.binaries, programs.applets)
    for path, target in programs.links:
        archive.add(cpio.symlink(path, target))
    if "usr/sbin/modprobe" not in archive:
        archive.add(cpio.symlink("usr/sbin/modprobe", "/usr/bin/modprobe"))  # where the kernel calls it
    for folder in folders:
        add_shell(archive, folder)
        check_commands(archive, folder)
    kernel = ModuleTree(kernel_tree, release)
    compression, remark = (compression, None) if compression else compression_for(kernel.tree, release)
    with passing() as store:
        wanted = Modules(tuple(modules), beside=(boot,))
        firmware, remarks = add_modules(archive, kernel, wanted, modprobe_of(boot, programs.binaries), store, level)
        report = pack(out, archive, Packing(mtime, level, compression, store))
    return replace(report, missing=firmware.missing, remarks=(*([remark] if remark else ()), *remarks))


def find_programs(tree: Tree, commands: Iterable[str]) -> Programs:
    """Find every command in the tree: an applet where busybox has it, otherwise a program. Raises CapsulekitError."""
    wanted = sorted(set(commands))
    busybox = tree.resolve(BUSYBOX)
    applets = frozenset[str]() if busybox is None else known_applets(busybox, [*wanted, *HANDY])
    binaries = [BUSYBOX] if applets else []
    links = []
    for command in wanted:
        if command in applets:
            continue
        path = _find(tree, command)
        stand_in = next((name for name in STAND_INS.get(command, ()) if _find(tree, name)), None)
        if path is not None:
            binaries.append(path)
        elif stand_in is not None:
            binaries.append(_find(tree, stand_in) or stand_in)
            links.append((f"usr/bin/{command}", f"/{binaries[-1]}"))
        else:
            raise CapsulekitError(
                f"stage 2 needs the command {command}, which is not in {tree.root}",
                hint=f"install there: {PACKAGES.get(command, COREUTILS)}",
            )
    return Programs(tuple(binaries), tuple(sorted(applets)), tuple(links))


def _find(tree: Tree, command: str) -> str | None:
    for folder in ("usr/sbin", "usr/bin"):
        found = tree.resolve(f"{folder}/{command}")
        if found is not None and found.host.is_file():
            return f"{folder}/{command}"
    return None


def _with_interpreters(tree: Tree, paths: Iterable[str]) -> list[str]:
    """The paths and what runs those of them that are scripts (coreutils may be one program and a script a command)."""
    todo, done = list(paths), list[str]()
    while todo:
        path = todo.pop(0)
        if path in done:
            continue
        done.append(path)
        found = tree.resolve(path)
        interpreter = _interpreter(found) if found is not None else None
        if interpreter is not None:
            todo.append(interpreter)
    return done


def _interpreter(found: Found) -> str | None:
    with found.host.open("rb") as file:
        line = file.readline(256)
    words = line[2:].split() if line.startswith(b"#!") else []
    return words[0].decode("utf-8", "surrogateescape") if words else None
