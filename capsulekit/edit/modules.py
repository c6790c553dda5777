"""Kernel modules in an edited root: whose folder they lie in, depmod's indexes over the whole stack, adopted kernels.

How umount calls it, with the edit still mounted and writable at ``at``:

    settled = settle(at, upper, edits, told.kernel_release, move=--move-modules, adopt=--adopt-kernel, dry_run=…)
    with frozen(folder):                             # from here on nothing changes any more
        layer = pack_changes(…, leave_out=settled.leave_out)     # an adopted kernel leaves the edit layer
        if settled.adopted:                          # boot/vmlinuz and layers/modules.squashfs of the new generation
            kernel = adopt_kernel(at, settled.release, work, told.epoch)
            told = replace(told, kernel_release=settled.release, layers=…)
        wanted = initrd.stage2_modules(recipe.toml's bytes)
        why = "the kernel is another one" if settled.adopted else initrd.needs_initrd(
            old_initrd, settled.release, wanted, at if settled.touched else None, hybrid=…)
        if why:
            made = initrd.rebuild_initrd(work / "initrd.img", old_initrd, at, settled.release, wanted, told.epoch)

``edits`` are the edit layers that the capsule has already, topmost first. ``settle`` changes files through the mount
(moved modules, depmod's indexes), never the upper itself, and doing it again changes nothing more: when umount fails
later, the edit is still what it was, with right indexes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit.depmod import INDEXES, READ, index_modules, is_module, modules_folder, walk
from capsulekit.edit.stack import Image
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from capsulekit.image.listing import FILE, FOLDER, LINK, Entry, Layer, list_layer
from capsulekit.image.system import RELEASE

# As a root spells the folder of all kernels' modules; Debian 12's own packages say the first, a merged root the second.
PLACES = ("lib/modules", "usr/lib/modules")
_MOST_NAMED = 5
LEVEL = 3  # zstd's, as a recipe's default
OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True)
class Foreign:
    """Files below the modules folder of a kernel that is not the capsule's; ``paths`` relative to the root, sorted."""

    release: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Settled:
    """What the modules in an edit come to.

    ``release`` is the kernel of the generation that will be made; ``adopted`` says whether that is a kernel out of the
    edit. ``leave_out`` are paths (relative to the root, with all below) that must not go into the edit layer.
    ``touched``: the edit changes what the modules folder of ``release`` holds, so the initrd may have to follow.
    ``lines`` say what was done, or would be, for people.
    """

    release: str
    adopted: bool = False
    leave_out: tuple[str, ...] = ()
    touched: bool = False
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdoptedKernel:
    """A kernel as a capsule's parts: image, modules layer with its size (bytes), sha256 and unpacked size (bytes)."""

    release: str
    image: Path
    layer: Path
    size: int
    sha256: str
    unpacked: int


def settle(
    at: Path,
    upper: Path,
    edits: Sequence[Image],
    release: str,
    *,
    move: bool = False,
    adopt: bool = False,
    dry_run: bool = False,
) -> Settled:
    """Check an edit's modules and set them right; see the head of this file. ``dry_run`` checks and changes nothing.

    Raises CapsulekitError naming the files when the edit, or an edit layer below it, holds modules of a kernel that is
    not ``release``, and neither ``move`` nor ``adopt`` says what becomes of them; also when there is not exactly one
    kernel to adopt, or two files would meet.
    """
    mine, below = upper_listing(upper), [layer_listing(image) for image in edits]
    kernels = kernels_in(mine)
    chosen = _to_adopt(kernels, release) if adopt else release
    for path, entry in ((p, e) for listing in below for p, e in listing.items() if adopt and _release_of(p) == chosen):
        if _whiteout(entry) and (inside(path) == "" or inside(path) in READ):
            raise hides(path, chosen)
    foreign = foreign_modules([mine, *below], chosen)
    if foreign and not move:
        raise refused(foreign, chosen, adoptable=None if adopt else next(iter(kernels), None))
    lines = [f"kernel {chosen} becomes the capsule's, instead of {release}"] * adopt
    lines += [f"the kernel {one} in the edit is not the capsule's (--adopt-kernel)" for one in kernels if not adopt]
    if foreign:
        check_move(at, foreign, chosen)
        lines += moved_lines(at, foreign, chosen)
    if foreign and not dry_run:
        move_modules(at, foreign, chosen, keep={path for listing in below for path in listing})
    touched = bool(foreign) or adopt or holds_modules([mine], chosen)
    if touched and not dry_run:
        index_modules(at, chosen)
    leave_out = _parts_of(at, mine, chosen) if adopt else ()
    return Settled(chosen, adopt, leave_out, touched, tuple(lines))


# --- whose modules


def foreign_modules(listings: Sequence[Mapping[str, Entry]], release: str) -> tuple[Foreign, ...]:
    """Files of other releases than ``release`` that the edit layers show, by release.

    ``listings`` are the edit's and its edit layers', topmost first (``upper_listing``, ``layer_listing``).
    """
    found: dict[str, list[str]] = {}
    for path, entry in _seen(listings).items():
        its = _release_of(path)
        if its is not None and its != release and entry.kind != FOLDER:
            found.setdefault(its, []).append(path)
    return tuple(Foreign(its, tuple(sorted(paths))) for its, paths in sorted(found.items()))


def holds_modules(listings: Sequence[Mapping[str, Entry]], release: str) -> bool:
    """Whether edit layers change what the modules folder of a release shows."""
    return any(_release_of(path) == release for listing in listings for path in listing)


def hides(path: str, release: str) -> CapsulekitError:
    """The error for an edit layer that removed what a new modules layer below it would bring."""
    return CapsulekitError(
        f"an edit has removed /{path}, and its layer would hide that of kernel {release} too",
        hint="make one layer of all edits first: capsulekit mount, then umount with --flatten",
    )


def refused(foreign: Sequence[Foreign], release: str, *, adoptable: str | None = None) -> CapsulekitError:
    """The error that names the files and the ways out; ``adoptable`` is a kernel that umount could take."""
    paths = [path for one in foreign for path in one.paths]
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    whose = ", ".join(one.release for one in foreign)
    ways = ["to move them to this kernel's folder: --move-modules", "or remove them in an edit"]
    if adoptable is not None:
        ways.insert(0, f"to make {adoptable} the capsule's kernel: --adopt-kernel")
    return CapsulekitError(
        f"an edit layer holds modules of kernel {whose}, and the capsule's kernel is {release}, which never looks "
        f"there: {', '.join(f'/{path}' for path in paths[:_MOST_NAMED])}{more}",
        hint="; ".join(ways),
    )


def kernels_in(listing: Mapping[str, Entry]) -> dict[str, str]:
    """The kernels that an edit brings whole: release → its image's path, where there are modules too."""
    images: dict[str, str] = {}
    for path, entry in listing.items():
        its = _release_of(path)
        if path.startswith("boot/vmlinuz-"):
            its = path.removeprefix("boot/vmlinuz-")
        elif its is None or inside(path) != "vmlinuz":
            continue
        if entry.kind == FILE and its is not None and RELEASE.fullmatch(its):
            images.setdefault(its, path)
    with_modules = {_release_of(path) for path, entry in listing.items() if entry.kind == FILE and is_module(path)}
    return {its: path for its, path in sorted(images.items()) if its in with_modules}


def _to_adopt(kernels: Mapping[str, str], release: str) -> str:
    new = [one for one in kernels if one != release] or list(kernels)
    if len(new) == 1:
        return new[0]
    told = f"it holds {len(new)} kernels: {', '.join(new)}" if new else "it holds no kernel with its modules"
    raise CapsulekitError(
        f"no kernel can be adopted from this edit: {told}",
        hint="remove all but one in the edit" if new else "install a kernel package in the edit first",
    )


def _seen(listings: Sequence[Mapping[str, Entry]]) -> dict[str, Entry]:
    """What layers show together, topmost first, those below them left out."""
    seen: dict[str, Entry] = {}
    for listing in reversed(listings):
        for path, entry in sorted(listing.items()):
            gone = _whiteout(entry)
            if gone or entry.kind != FOLDER or entry.target == OPAQUE:
                for below in [other for other in seen if other == path or other.startswith(f"{path}/")]:
                    del seen[below]
            if not gone:
                seen[path] = entry
    return seen


def _whiteout(entry: Entry) -> bool:
    return entry.target == "0:0" and entry.kind not in (FOLDER, LINK)


def _release_of(path: str) -> str | None:
    """The release in whose modules folder a path lies (the folder itself counts), or None."""
    for place in PLACES:
        if path.startswith(f"{place}/"):
            return path.removeprefix(f"{place}/").partition("/")[0]
    return None


def layer_listing(image: Image) -> dict[str, Entry]:
    """What an edit layer holds below its modules folders, and the images of kernels in boot."""
    return {path: entry for path, entry in list_layer(Layer(image.path, image.offset)).items() if _wanted(path)}


def upper_listing(upper: Path) -> dict[str, Entry]:
    """The same of an edit that is not packed yet; a folder that hides what is below it has ``OPAQUE`` as its target."""
    found = {}
    for place in (*PLACES, "boot"):
        above = [Path(place), *Path(place).parents[:-1]]
        if any((upper / part).is_symlink() or not (upper / part).is_dir() for part in above):
            continue
        for path in (upper / place, *walk(upper / place)):
            name = path.relative_to(upper).as_posix()
            if _wanted(name):
                found[name] = _entry(path)
    return found


def _wanted(path: str) -> bool:
    return _release_of(path) is not None or path.startswith("boot/")


def _entry(path: Path) -> Entry:
    info = path.lstat()
    mode = info.st_mode
    if stat.S_ISDIR(mode):
        with suppress(OSError):
            if os.getxattr(path, OPAQUE, follow_symlinks=False) == b"y":
                return Entry(FOLDER, mode & 0o7777, info.st_uid, info.st_gid, target=OPAQUE)
        return Entry(FOLDER, mode & 0o7777, info.st_uid, info.st_gid)
    kind, target = FILE, ""
    if stat.S_ISLNK(mode):
        kind, target = LINK, str(path.readlink())
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        kind, target = "device", f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    elif not stat.S_ISREG(mode):
        kind = "fifo"
    return Entry(kind, mode & 0o7777, info.st_uid, info.st_gid, info.st_size, target)


def _parts_of(at: Path, mine: Mapping[str, Entry], release: str) -> tuple[str, ...]:
    """What is the capsule's own when a kernel is adopted, and leaves the edit layer; its boot/config stays."""
    boot = [path.format(release) for path in ("boot/vmlinuz-{}", "boot/initrd.img-{}", "boot/initramfs-{}.img")]
    return (*(path for path in boot if path in mine), modules_folder(at, release).relative_to(at.resolve()).as_posix())


# --- moving


def check_move(root: Path, foreign: Sequence[Foreign], release: str) -> None:
    """Raise CapsulekitError when a file can't be moved: one is there already, or a link leads elsewhere."""
    folder = modules_folder(root, release)
    for one in foreign:
        for path in one.paths:
            target = folder / inside(path)
            if dropped(path):
                continue
            if os.path.lexists(target):
                raise CapsulekitError(
                    f"/{path} can't be moved: kernel {release} has its own {inside(path)}",
                    hint="a whole kernel is not moved: remove its files in the edit, or adopt it",
                )
            if any(above.is_symlink() for above in target.parents if above.is_relative_to(folder)):
                raise CapsulekitError(f"/{path} can't be moved: a link is in its way in the folder of {release}")


def move_modules(root: Path, foreign: Sequence[Foreign], release: str, keep: Collection[str] = ()) -> tuple[str, ...]:
    """Move files through the mount into the folder of ``release``; what was moved (old paths), indexes left out.

    Folders that are empty then go too, but those of ``keep``, which layers below have: the mark of their removal would
    hide that kernel's modules if it came back.

    Raises CapsulekitError, before anything is moved, when a file is there already.
    """
    check_move(root, foreign, release)
    folder, moved = modules_folder(root, release), []
    for one in foreign:
        for path in one.paths:
            old = root / path
            if dropped(path):
                old.unlink(missing_ok=True)
                continue
            (folder / inside(path)).parent.mkdir(parents=True, exist_ok=True)
            old.rename(folder / inside(path))
            moved.append(path)
        for folder_of in sorted({parent for path in one.paths for parent in Path(path).parents}, reverse=True):
            if _release_of(str(folder_of)) == one.release and str(folder_of) not in keep:
                with suppress(OSError):  # not empty: what is left there is nobody's business
                    (root / folder_of).rmdir()
    return tuple(moved)


def moved_lines(root: Path, foreign: Sequence[Foreign], release: str) -> list[str]:
    """What a move means, for people: what goes where, and which modules say that they are another kernel's."""
    from initramfs_builder.modulefile import read_modinfo

    lines = []
    for one in foreign:
        for path in one.paths:
            if dropped(path):
                continue
            lines.append(f"/{path} moves to the folder of kernel {release}")
            if is_module(path) and (root / path).is_file():
                built = dict(read_modinfo(root / path)).get("vermagic", "").partition(" ")[0]
                if built != release:
                    lines.append(
                        f"  it says that it was built for kernel {built or '(nothing)'}: {release} may refuse it"
                    )
    return lines


def inside(path: str) -> str:
    """A path within its release's folder; empty for the folder itself, and for what is in none."""
    return path.split("/modules/", 1)[1].partition("/")[2] if _release_of(path) is not None else ""


def dropped(path: str) -> bool:
    """What depmod made for the folder, or the package brought for depmod: the other folder has its own."""
    return INDEXES.fullmatch(inside(path)) is not None or inside(path) in READ


# --- adopting


def adopt_kernel(
    root: Path, release: str, work: Path, epoch: int, level: int = LEVEL, old: Image | None = None
) -> AdoptedKernel:
    """Make boot/vmlinuz and the modules layer of a kernel that a merged root holds; written below ``work``.

    ``old`` is the modules layer so far: the firmware in it goes along. Raises CapsulekitError when the image is no
    file, or the modules folder leads elsewhere.
    """
    from capsulekit.image.system import find_kernel
    from capsulekit.kernel import write_modules

    kernel = find_kernel(root, release)
    folders = {kernel.modules: root / kernel.modules}
    firmware = [
        path
        for path in (list_layer(Layer(old.path, old.offset)) if old is not None else ())
        if "/firmware/" in f"/{path}/"
    ]
    for path in firmware:
        source = root / path
        if source.is_file() and not source.is_symlink():
            (work / "old" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, work / "old" / path)
        elif source.is_symlink():
            (work / "old" / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "old" / path).symlink_to(source.readlink())
    for place in ("lib/firmware", "usr/lib/firmware"):
        if (work / "old" / place).is_dir():
            folders[place] = work / "old" / place
    image, layer = work / "vmlinuz", work / "modules.squashfs"
    shutil.copyfile(kernel.image, image)
    unpacked = write_modules(layer, folders, epoch, level)
    return AdoptedKernel(release, image, layer, layer.stat().st_size, sha256_file(layer), unpacked)
