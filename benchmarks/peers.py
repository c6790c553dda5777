"""The peers' command lines: what their users would type for the same job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Argv = list[str | Path]

# The initramfs makers read /lib/modules, /lib/firmware and /boot: they get ours there, and nobody else.
WITH_KERNEL = (
    'mount --bind "$1/usr/lib/modules" /lib/modules && mount --bind "$1/boot" /boot && '
    'mount --bind "$2" /lib/firmware && shift 2 && exec "$@"'
)
# systemd-nspawn, which mkosi runs, refuses a /run that lies on a disk: it gets its own corner of it in memory.
WITH_RUN = 'mount -t tmpfs -o mode=0755 nspawn "$1" && shift && exec "$@"'
NSPAWN = Path("/run/systemd/nspawn")
# Warewulf 4 ships its images so.
CPIO = 'cd "$1" && find . -xdev | cpio --quiet -o -H newc | gzip >"$2"'


def mmdebstrap(suite: str, packages: Sequence[str], out: Path) -> Argv:
    """A tar of the essential packages and the named ones; its defaults otherwise."""
    return ["mmdebstrap", "--variant=essential", "--include=" + ",".join(packages), suite, out]


def mkosi(suite: str, packages: Sequence[str], folder: Path) -> Argv:
    """A folder with a minimal system and the packages, documentation kept as the others do; nothing to boot it.

    ``folder``/cache is its package cache; NSPAWN has to be a folder. (Its --incremental does nothing without a build
    script: it looks for the cached image of that one too, and makes everything anew.)
    """
    return [
        "unshare", "--mount", "sh", "-euc", WITH_RUN, "sh", NSPAWN,
        "mkosi", "--distribution=debian", f"--release={suite}", "--format=directory", "--with-docs", "--force",
        "--package=" + ",".join(packages), "--output=tree", f"--output-dir={folder / 'out'}",
        f"--cache={folder / 'cache'}", f"--workspace-dir={folder}",
        "--nspawn-keep-unit",  # or nspawn asks systemd on the bus for a unit, which containers do not have
        "build",
    ]  # fmt: skip


def mksquashfs(tree: Path, out: Path, level: int, block: int) -> Argv:
    """A squashfs of a folder, zstd, with the layers' own level and block size (bytes)."""
    return [
        "mksquashfs", tree, out, "-comp", "zstd", "-Xcompression-level", str(level), "-b", str(block), "-no-progress",
        "-quiet",
    ]  # fmt: skip


def cpio_gzip(tree: Path, out: Path) -> Argv:
    """A folder as a cpio archive, by gzip as it comes."""
    return ["sh", "-euc", CPIO, "sh", tree, out]


def mkinitramfs(kernel: Path, firmware: Path, release: str, out: Path) -> Argv:
    """A generic initramfs (MODULES=most) of the kernel unpacked in ``kernel``."""
    return [*_with_kernel(kernel, firmware), "mkinitramfs", "-c", "zstd", "-o", out, release]


def dracut(kernel: Path, firmware: Path, release: str, out: Path) -> Argv:
    """The same by dracut."""
    return [*_with_kernel(kernel, firmware), "dracut", "-q", "--force", "--no-hostonly", "--zstd", out, release]


def _with_kernel(kernel: Path, firmware: Path) -> Argv:
    return ["unshare", "--mount", "sh", "-euc", WITH_KERNEL, "sh", kernel, firmware]
