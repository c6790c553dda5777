"""A small edit layer that puts modules right when the kernel below was swapped: files moved, depmod's indexes made new.

Layers never change: what lay in the folder of the kernel that is gone is taken away by whiteouts, and lies in the
folder of the new one. A whiteout for each file, not for the folder: that kernel may come back.
"""

from __future__ import annotations

import filecmp
import stat
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from capsulekit.edit.depmod import READ, depmod_over, modules_folder
from capsulekit.edit.modules import Foreign, check_move, dropped, hides, inside
from capsulekit.image.listing import Entry
from capsulekit.image.squashfs import layer_from_tar

LEVEL = 3  # zstd's, as for every edit layer


def write_restacked(out: Path, root: Path, foreign: Sequence[Foreign], release: str, epoch: int) -> int | None:
    """Write the layer to lie above a merged, read-only ``root``; its unpacked size in bytes, None when nothing changes.

    ``foreign`` are files to move to the folder of ``release``. Raises CapsulekitError when one can't be moved.
    """
    check_move(root, foreign, release)
    folder = modules_folder(root, release)
    place = folder.relative_to(root.resolve()).as_posix()
    moved = {inside(path): root / path for one in foreign for path in one.paths if not dropped(path)}
    gone = sorted({path for one in foreign for path in one.paths})
    with depmod_over(root, release, moved) as made:
        files = {f"{place}/{name}": path for name, path in moved.items()}
        files |= {f"{place}/{new.name}": new for new in made if not _same(new, folder / new.name)}
        if not files and not gone:
            return None
        with layer_from_tar(out, epoch, LEVEL) as sink:
            return _tar(sink, root, files, gone, epoch)


def check_shown(root: Path, release: str, modules: Mapping[str, Entry]) -> None:
    """Raise CapsulekitError when layers above the new modules layer, listed in ``modules``, hide what makes it work.

    That is its folder and what depmod can't make again: an edit has removed them when they were of no use. Single
    modules that an edit has removed stay away.
    """
    wanted = [path for path in modules if path.endswith(f"modules/{release}") or inside(path) in READ]
    for path in wanted:
        if not (root / path).exists():
            raise hides(path, release)


def _same(new: Path, old: Path) -> bool:
    return old.is_file() and not old.is_symlink() and filecmp.cmp(new, old, shallow=False)


def _tar(sink: IO[bytes], root: Path, files: Mapping[str, Path], gone: Sequence[str], epoch: int) -> int:
    """Files, whiteouts and the folders above them, which look as they do in the root."""
    total = 0
    above = {str(parent) for path in (*files, *gone) for parent in Path(path).parents} - {"."}
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted({*above, *files, *gone}):
            info = tarfile.TarInfo(path)
            info.mtime = epoch
            if path in gone:
                info.type, info.mode = tarfile.CHRTYPE, 0o600  # device 0:0: overlay's mark of what was removed
                tar.addfile(info)
            elif path in above:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                if (root / path).is_dir():
                    seen = (root / path).stat()
                    info.mode, info.uid, info.gid = stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid
                tar.addfile(info)
            else:
                total += _add(tar, info, files[path])
    return total


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, source: Path) -> int:
    if source.is_symlink():
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, str(source.readlink())
        tar.addfile(info)
        return 0
    info.mode, info.size = 0o644, source.stat().st_size
    with source.open("rb") as data:
        tar.addfile(info, data)
    return info.size
