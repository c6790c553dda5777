"""depmod over a whole stack of layers: an index must speak of every layer's modules, whichever layer it lies in."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from initramfs_builder.tree import Tree

from capsulekit.errors import CapsulekitError
from capsulekit.files import read_bounded

# What depmod writes, and what it reads of a kernel package beside the modules themselves.
INDEXES = re.compile(
    r"modules\.((alias|builtin|builtin\.alias|dep|symbols)\.bin|alias|dep|devname|softdep|symbols|weakdep)"
)
READ = ("modules.order", "modules.builtin", "modules.builtin.modinfo", "modules.builtin.ranges")
_CONF_MAX = 1 << 20  # bytes of one of depmod's configuration files


def modules_folder(root: Path, release: str) -> Path:
    """Where the modules of a release really lie on this host; raises CapsulekitError when they are not in the root."""
    found = Tree(root).resolve(f"usr/lib/modules/{release}")
    if found is None or not found.host.is_dir():
        raise CapsulekitError(f"the root holds no modules of kernel {release}")
    if found.path != f"usr/lib/modules/{release}":
        raise CapsulekitError(f"the modules folder of kernel {release} is a link to /{found.path}: put it in its place")
    return found.host


def index_modules(root: Path, release: str) -> tuple[str, ...]:
    """Run depmod over a merged view that can be written to; what it changed, relative to the root.

    Files that would stay the same are not written. Raises CapsulekitError when the root has no modules of ``release``.
    """
    folder, changed = modules_folder(root, release), []
    with depmod_over(root, release) as made:
        for new in made:
            old: Path = folder / new.name
            if old.is_symlink() or not old.is_file() or not filecmp.cmp(new, old, shallow=False):
                part = folder / f".{new.name}.part"
                shutil.copyfile(new, part, follow_symlinks=False)
                part.chmod(0o644)
                part.replace(old)
                changed.append((folder / new.name).relative_to(root.resolve()).as_posix())
    return tuple(sorted(changed))


@contextmanager
def depmod_over(root: Path, release: str, more: Mapping[str, Path] | None = None) -> Iterator[list[Path]]:
    """depmod's indexes of a root that may be read-only: their files, sorted, for the time of the block.

    ``more`` are modules to index with those of the root: path in the folder of ``release`` → where it lies now.

    depmod only ever sees a folder of links to plain files, so nothing in the root can lead it elsewhere on this host.
    """
    from capsulekit.kernel import depmod

    folder = modules_folder(root, release)
    with tempfile.TemporaryDirectory(prefix="ck-depmod-") as work:
        farm, config = Path(work) / "lib/modules" / release, Path(work) / "depmod.d"
        farm.mkdir(parents=True)
        config.mkdir()
        files = {path.relative_to(folder).as_posix(): path for path in walk(folder)}
        for name, path in {**files, **(more or {})}.items():
            if stat.S_ISREG(path.lstat().st_mode) and (is_module(name) or name in READ):
                (farm / name).parent.mkdir(parents=True, exist_ok=True)
                (farm / name).symlink_to(path)
        for name, text in _depmod_conf(Tree(root)).items():
            (config / name).write_bytes(text)
        depmod(Path(work), release, config)
        yield sorted(path for path in farm.iterdir() if INDEXES.fullmatch(path.name) and not path.is_symlink())


def _depmod_conf(tree: Tree) -> dict[str, bytes]:
    """The root's own configuration of depmod, not this host's; of two of a name the first place wins (depmod.d(5))."""
    found: dict[str, bytes] = {}
    for place in ("etc/depmod.d", "run/depmod.d", "usr/local/lib/depmod.d", "usr/lib/depmod.d"):
        for name in tree.listing(place):
            file = tree.resolve(f"{place}/{name}") if name.endswith(".conf") else None
            if file is not None and file.host.is_file() and name not in found:
                found[name] = read_bounded(file.host, _CONF_MAX)
    return found


def is_module(path: str) -> bool:
    """Whether a file is a kernel module, by its name."""
    return re.search(r"\.ko(\.(zst|xz|gz))?$", path) is not None


def walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder, no link followed, folders before what they hold."""
    for base, folders, files in os.walk(folder):
        yield from (Path(base) / name for name in sorted([*folders, *files]))
