"""A capsule's initrd made again: the programs of the old one, the modules of its kernel, today's stage-2 shell.

The package files that the old initrd's programs came out of are long gone when a capsule is edited, and the capsule's
own root may hold others by then; so an initrd is its own source of programs (docs/decisions/initrd-from-itself.md).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from initramfs_builder.archive import Archive
from initramfs_builder.compress import COMPRESSIONS, Compression, compression_for
from initramfs_builder.cpio import Entry, Slice
from initramfs_builder.resources import shell_dir
from initramfs_builder.tree import Tree, merged
from initramfs_builder.unpack import Member, read_image

from capsulekit.errors import CapsulekitError, TrustError

if TYPE_CHECKING:
    from capsulekit.recipe.model import Recipe

SHELL = "usr/lib/capsulekit"
# What an initrd holds beside programs: it is made anew, or belongs to the kernel that it was made for.
_MODULES = ("usr/lib/modules", "usr/lib/firmware")
_NOT_PROGRAMS = ("init", "dev", SHELL, *_MODULES)
_NETWORK_LAYER = f"{SHELL}/hybrid.sh"
_COMMAND = re.compile(r"the command ([^ ,]+)")
_DRIVER = re.compile(r"\.ko(\.zst|\.xz|\.gz)?$")


@dataclass(frozen=True)
class Rebuilt:
    """A new initrd: its file, size in bytes, hex sha256, and what its author should know."""

    path: Path
    size: int
    sha256: str
    remarks: tuple[str, ...]


def stage2_modules(recipe: bytes) -> tuple[str, ...]:
    """The modules that a capsule's ``recipe.toml`` wants in its initrd; if it says none, those that mount layers."""
    from capsulekit.pack import STAGE2_MODULES

    told = told_recipe(recipe)
    return (told.stage2_modules if told is not None else ()) or STAGE2_MODULES


def told_recipe(recipe: bytes) -> Recipe | None:
    """A capsule's ``recipe.toml``, or None where it was written by another version of the recipe's rules."""
    from capsulekit.recipe.load import loads_recipe

    try:
        return loads_recipe(recipe.decode("utf-8"), "recipe.toml")
    except (CapsulekitError, UnicodeDecodeError):
        return None


def needs_initrd(
    initrd: Path, release: str, modules: Sequence[str], root: Path | None = None, *, hybrid: bool = False
) -> str:
    """Why an initrd has to be made again, in a few words; empty when it is as it would be made today.

    ``root`` is the merged view of the new layers, with depmod's indexes right (see ``modules.settle``); None where
    nothing below its modules and firmware folders has changed, which spares looking at them. ``hybrid`` as in
    ``rebuild_initrd``. Raises TrustError when the initrd is damaged, CapsulekitError when a module is missing in the
    root.
    """
    from initramfs_builder.store import passing

    held = _held(initrd, ("init", SHELL, *(_MODULES if root is not None else ())))
    network = hybrid or _NETWORK_LAYER in held
    with passing() as store, tempfile.TemporaryDirectory(prefix="ck-initrd-") as work:
        archive = Archive()
        _add_shell(archive, network)
        if root is not None:
            from initramfs_builder.modules import ModuleTree
            from initramfs_builder.stage import Modules, add_modules, modprobe_of
            from initramfs_builder.stage2 import DEFAULT_LEVEL, find_programs

            programs = Tree(_programs(initrd, Path(work)))
            binaries = find_programs(programs, ["modprobe"]).binaries
            wanted = Modules(tuple(modules), beside=(programs,))
            kernel = ModuleTree(root, release)
            add_modules(archive, kernel, wanted, modprobe_of(programs, binaries), store, DEFAULT_LEVEL)
        wanted_now = {entry.path: _entry_sum(entry) for entry in archive.entries() if not stat.S_ISDIR(entry.mode)}
    return _difference(held, wanted_now)


def rebuild_initrd(
    out: Path,
    initrd: Path,
    root: Path,
    release: str,
    modules: Sequence[str],
    epoch: int,
    *,
    hybrid: bool = False,
    kernel: Path | None = None,
) -> Rebuilt:
    """Write the initrd for kernel ``release`` to ``out``, by the same assembly and check of its closure as a build.

    ``initrd`` is the old one, whose programs are taken; ``root`` is the merged view of the new layers (or a tree with
    nothing but modules and firmware), depmod's indexes right; ``modules`` see ``stage2_modules``; ``epoch`` the
    manifest's. A capsule that has what mounts a network layer keeps it; ``hybrid`` adds it. ``kernel`` tells what this
    kernel unpacks: another initrd that it has booted with, or a tree that holds boot/config-RELEASE (default: the root,
    and the old initrd where it is the same kernel). The same inputs give the same bytes. Raises CapsulekitError when a
    command, module or firmware is missing, TrustError when the old initrd is damaged; nothing is at ``out`` then.
    """
    from initramfs_builder.check.closure import must_be_closed
    from initramfs_builder.check.record import Record
    from initramfs_builder.stage2 import assemble_stage2

    network = hybrid or _NETWORK_LAYER in _held(initrd, (SHELL,))
    with tempfile.TemporaryDirectory(prefix=".initrd-", dir=out.parent) as work:
        made = Path(work) / "initrd.img"
        programs, said = _enough_programs(initrd, root, Path(work) / "programs", network)
        taken, remark = _compression(initrd, root, release, kernel)
        with made.open("wb") as image:
            report = assemble_stage2(
                image, programs, root, release, modules, epoch, hybrid=network, compression=taken
            )  # fmt: skip
        told = Record(release, tuple(modules), frozenset(report.missing))
        must_be_closed(made, "the initrd of this capsule", told)
        if network:
            check_network_layer(root, release)
        with made.open("rb") as image:
            sha256 = hashlib.file_digest(image, "sha256").hexdigest()
        size = made.stat().st_size
        made.replace(out)
    return Rebuilt(out, size, sha256, tuple(line for line in (said, remark, *report.remarks) if line))


def check_network_layer(root: Path, release: str) -> None:
    """A hybrid capsule's kernel must know NFS 4: raises CapsulekitError when it does not."""
    from initramfs_builder.modules import ModuleTree

    from capsulekit.kernel import HYBRID_MODULES

    try:
        ModuleTree(root, release).closure(HYBRID_MODULES)
    except CapsulekitError as error:
        raise CapsulekitError(
            f"a hybrid capsule needs a kernel with NFS 4: {error.message}", hint="take a kernel that has these modules"
        ) from None


def _enough_programs(initrd: Path, root: Path, folder: Path, network: bool) -> tuple[Path, str]:
    """Where the programs of today's stage 2 are, and a remark: in the old initrd, else all of them in the root.

    Never some of each: a library of the one need not fit a program of the other. Raises CapsulekitError naming the
    command that is in neither.
    """
    from initramfs_builder.stage import needed_commands
    from initramfs_builder.stage2 import HYBRID_SHELL, find_programs

    folder.mkdir()
    shells = [shell_dir("stage2"), *([shell_dir(HYBRID_SHELL)] if network else [])]
    commands = ["sh", *(command for shell in shells for _, command in needed_commands(shell))]
    _programs(initrd, folder)
    try:
        find_programs(Tree(folder), commands)
    except CapsulekitError as lacking:
        try:
            find_programs(Tree(root), commands)
        except CapsulekitError as too:
            mine, its = (_COMMAND.findall(error.message)[0] for error in (lacking, too))
            raise CapsulekitError(
                f"today's stage 2 needs the command {mine}, which the old initrd lacks, and the root lacks {its}",
                hint=f"in an edit of the capsule, {too.hint}",
            ) from None
        return root, "the old initrd lacks a command of today's stage 2: its programs are the root's own now"
    return folder, ""


def _compression(initrd: Path, root: Path, release: str, kernel: Path | None) -> tuple[Compression, str | None]:
    """What this kernel unpacks: what it did unpack, else what its configuration says, else by its number."""
    if kernel is not None and kernel.is_file():
        proof: Path | None = kernel
    else:
        proof = initrd if _held(initrd, [f"usr/lib/modules/{release}"]) else None
    if proof is not None:
        kinds = {member.packed for member in read_image(proof)}
        for one in COMPRESSIONS:
            if one.name in kinds:
                return one, None
    return compression_for(Tree(kernel if kernel is not None and kernel.is_dir() else root), release)


def _add_shell(archive: Archive, network: bool) -> None:
    from initramfs_builder.stage import add_shell
    from initramfs_builder.stage2 import HYBRID_SHELL

    add_shell(archive, shell_dir("stage2"))
    if network:
        add_shell(archive, shell_dir(HYBRID_SHELL))


def _difference(held: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """The first path at which an initrd is not what it would be today, in words."""
    for path in sorted({*held, *wanted}):
        if held.get(path) == wanted.get(path):
            continue
        word = "new" if path not in held else "gone" if path not in wanted else "changed"
        if path == "init" or path.startswith(f"{SHELL}/"):
            return f"stage 2 of this capsulekit is another one: {path} is {word}"
        return f"a module it holds is another one: {path} is {word}"
    return ""


def _below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def _held(initrd: Path, places: Sequence[str]) -> dict[str, str]:
    """What an initrd holds below these places, folders left out: path → what it is, as ``_entry_sum`` says it."""
    found = {}
    for member in read_image(initrd):
        path = merged(member.path)
        if _below(path, places) and not stat.S_ISDIR(member.mode):
            data = member.read() if stat.S_ISREG(member.mode) else b""
            found[path] = _sum(path, member.mode, data, member.target)
    return found


def _entry_sum(entry: Entry) -> str:
    data = entry.data or b""
    if isinstance(data, Slice):
        with data.path.open("rb") as file:
            data = file.read(data.size)
    elif isinstance(data, Path):
        data = data.read_bytes()
    return _sum(entry.path, entry.mode, data, entry.target)


def _sum(path: str, mode: int, data: bytes, target: str | None) -> str:
    """What a path is; a driver by what it is unpacked: how well it is compressed is no difference."""
    if _DRIVER.search(path):
        from initramfs_builder.modulebytes import unpacked

        data = unpacked(data, path)
    return f"{mode:o} {target or ''} {hashlib.sha256(data).hexdigest()}"


def _programs(initrd: Path, folder: Path) -> Path:
    """Lay an initrd's programs, libraries and links down in an empty folder of our own; returns it.

    Links come last, so that nothing is ever written through one. Raises TrustError for what no initrd of ours holds.
    """
    links: dict[str, str] = {}
    for member in read_image(initrd):
        path = merged(member.path)
        if not path or _below(path, _NOT_PROGRAMS):
            continue
        if stat.S_ISDIR(member.mode):
            (folder / path).mkdir(mode=0o755, parents=True, exist_ok=True)
        elif member.target is not None:
            links[path] = member.target
        else:
            _lay(member, folder / path, initrd)
    for path, target in links.items():
        place = folder / path
        if path in ("bin", "sbin", "lib", "lib64", "usr") or place.exists() or place.is_symlink():
            continue  # of a merged /usr; every path here is by its merged name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    return folder


def _lay(member: Member, place: Path, initrd: Path) -> None:
    if not stat.S_ISREG(member.mode) or member.links > 1:
        raise TrustError(f"{initrd} is no initrd of a capsule: {member.path} is of a kind that none holds")
    try:
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise TrustError(f"{initrd} is no initrd of a capsule: {member.path} lies below a file") from None
    with os.fdopen(fd, "wb") as out:
        for piece in member.pieces():
            out.write(piece)
        os.fchmod(out.fileno(), 0o755 if member.mode & 0o111 else 0o644)
