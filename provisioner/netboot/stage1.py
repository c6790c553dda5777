"""The stage 1 of each architecture that a site has: checked and put in place by ``init``, named in boot scripts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_file, fsync_dir
from capsulekit.sitepaths import SitePaths

# What a boot script can choose between (netboot/templates/boot.ipxe.j2), and the recipe that each is built from.
ARCHES = ("amd64", "i386")
KERNEL, IMAGE, RECORD = "vmlinuz", "stage1.img", "stage1.json"
FILES = (KERNEL, IMAGE, RECORD)
MOST_RECORD = 4 << 20  # bytes


@dataclass(frozen=True)
class Stage1Source:
    """A folder that ``capsulekit stage1 build`` wrote, and the architecture its record names."""

    folder: Path
    arch: str


def folder_of(paths: SitePaths, arch: str) -> Path:
    """Where the stage 1 of an architecture lies."""
    return paths.state / "stage1" / arch


def installed(paths: SitePaths) -> tuple[str, ...]:
    """The architectures that this site has a whole stage 1 for, in the order of ARCHES."""
    return tuple(arch for arch in ARCHES if all((folder_of(paths, arch) / name).is_file() for name in FILES))


def require_stage1(paths: SitePaths) -> tuple[str, ...]:
    """Like ``installed``. Raises CapsulekitError when there is none, or one that lacks a file."""
    for arch in ARCHES:
        folder = folder_of(paths, arch)
        lacking = [name for name in FILES if not (folder / name).is_file()]
        if folder.exists() and lacking:
            raise CapsulekitError(f"stage 1 is incomplete: {folder / lacking[0]} is missing", hint=_way_out("DIR"))
    found = installed(paths)
    if not found:
        raise CapsulekitError(f"no stage 1 is installed in {paths.state / 'stage1'}", hint=_way_out("DIR"))
    return found


def read_source(folder: Path) -> Stage1Source:
    """Look at what ``stage1 build`` wrote. Raises CapsulekitError naming what is missing or wrong, and the way out."""
    for name in FILES:
        if not (folder / name).is_file():
            raise CapsulekitError(f"{folder} is not a stage 1: {name} is missing", hint=_way_out(folder))
    record = folder / RECORD
    try:
        if record.stat().st_size > MOST_RECORD:
            raise ValueError("it is too big")
        table = json.loads(record.read_bytes())
        if not isinstance(table, dict) or table.get("format") != 1:
            raise ValueError("it is not of format 1")
        arch = table.get("arch")
        if arch not in ARCHES:
            raise ValueError(f"its architecture {arch!r} is neither " + " nor ".join(ARCHES))
    except (ValueError, RecursionError) as error:
        raise CapsulekitError(f"{record} is not the record of a stage 1: {error}", hint=_way_out(folder)) from error
    return Stage1Source(folder, str(arch))


def read_sources(folders: Iterable[Path]) -> tuple[Stage1Source, ...]:
    """``read_source`` of each. Raises CapsulekitError also when two are of one architecture."""
    found: dict[str, Stage1Source] = {}
    for folder in folders:
        source = read_source(folder)
        if source.arch in found:
            raise CapsulekitError(
                f"{found[source.arch].folder} and {folder} are both a stage 1 for {source.arch}",
                hint="name one --stage1 for each architecture",
            )
        found[source.arch] = source
    return tuple(found.values())


def install(source: Stage1Source, paths: SitePaths) -> None:
    """Copy a stage 1 into the site. The three files change as one: a kernel never meets another one's modules."""
    link = folder_of(paths, source.arch)
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(mkdtemp(prefix=f".{source.arch}-", dir=link.parent))
    for name in FILES:
        with (source.folder / name).open("rb") as data, atomic_file(folder / name) as out:
            shutil.copyfileobj(data, out, 1 << 20)
    # A link can be replaced in one step, a folder cannot.
    new = folder.with_name(folder.name + ".link")
    new.symlink_to(folder.name)
    new.rename(link)
    fsync_dir(link.parent)
    _remove_others(link, folder)


def _remove_others(link: Path, keep: Path) -> None:
    """Remove what earlier runs left for this architecture, whole ones and those that were killed half-way."""
    for entry in os.scandir(link.parent):
        if entry.name.startswith(f".{link.name}-") and entry.name != keep.name:
            if entry.is_symlink():
                with suppress(FileNotFoundError):
                    Path(entry.path).unlink()
            else:
                shutil.rmtree(entry.path, ignore_errors=True)


def _way_out(folder: Path | str) -> str:
    return f"capsulekit stage1 build -o {folder}, then: capsulekit init --stage1 {folder}"
