"""Trees to pack: a capsule's own, as stock tools unpack it, and filled up to any size."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.measure import Cost, capsulekit, measure, new_key

# Bytes a file has on average. Debian's roots have half of it, and would take twice as long.
FILE = 128 << 10
FOLDER = 500  # files in each folder


def built(recipe: Path, folder: Path, cache: Path, *words: str) -> Path:
    """The capsule of a recipe, in ``folder``."""
    out = folder / f"{recipe.stem}.vnfs"
    capsulekit("build", recipe, "-o", out, "--key", new_key(folder), "--cache-dir", cache, *words)
    return out


def unpacked(capsule: Path, tree: Path) -> Path:
    """Its root with the kernel and its modules, as on a disk, in the new folder ``tree``. Removes the capsule."""
    parts = tree.with_suffix(".parts")
    parts.mkdir()
    measure(["tar", "-C", parts, "-xf", capsule])
    for layer in ("rootfs", "modules"):
        measure(["unsquashfs", "-quiet", "-no-progress", "-force", "-dest", tree, parts / f"layers/{layer}.squashfs"])
    _merge_usr(tree)
    release = next((tree / "usr/lib/modules").iterdir()).name
    (tree / "boot").mkdir(exist_ok=True)
    shutil.copyfile(parts / "boot/vmlinuz", tree / f"boot/vmlinuz-{release}")
    shutil.rmtree(parts)
    capsule.unlink()
    return tree


def _merge_usr(tree: Path) -> None:
    """A tree that was unpacked but not installed has a bin/ and a lib/ of its own: give it the layout of today."""
    for name in ("bin", "lib", "sbin"):
        if (tree / name).is_dir() and not (tree / name).is_symlink():
            shutil.copytree(tree / name, tree / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(tree / name)
            (tree / name).symlink_to(f"usr/{name}")


def fill(folder: Path, size: int) -> None:
    """Add files until those of the folder have ``size`` bytes together; no two alike, a quarter of each random.

    Their sizes differ as they do in life: mksquashfs compares every file with all others of its size.
    """
    lacking = max(0, size - tree_size(folder)[0])
    for number in range(lacking // FILE):
        place = folder / f"{size}/{number // FOLDER:04}"
        if number % FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"file-{number:06}").write_bytes(os.urandom((FILE // 2 + number * 4099 % FILE) // 4) * 4)


def pack(tree: Path, folder: Path, *, watched: bool = False) -> Cost:
    """Pack a tree with `capsulekit pack`; the capsule is removed."""
    out = folder / "packed.vnfs"
    cost = _packing(out, tree, folder, watched=watched)
    out.unlink()
    return cost


def pack_to(out: Path, tree: Path, folder: Path) -> Path:
    """The capsule of a tree, signed by the key of ``folder``."""
    _packing(out, tree, folder)
    return out


def _packing(out: Path, tree: Path, folder: Path, *, watched: bool = False) -> Cost:
    words = ("-o", out, "--key", new_key(folder), "--cache-dir", folder / "pack-cache")
    return capsulekit("pack", tree, *words, watched=watched)


def tree_size(root: Path) -> tuple[int, int]:
    """Bytes of the regular files below a folder, each hard-linked one once, and the number of paths."""
    size, paths, seen = 0, 0, set()
    for folder, folders, files in os.walk(root):
        paths += len(folders) + len(files)
        for name in files:
            status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (a Path for each would double the time)
            if status.st_mode & 0o170000 != 0o100000 or (status.st_nlink > 1 and status.st_ino in seen):
                continue
            seen.add(status.st_ino)
            size += status.st_size
    return size, paths
