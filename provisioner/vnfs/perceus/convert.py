"""A Perceus capsule becomes one of ours: unpacked, packed by the packer's own code, signed by the site."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from initramfs_builder.tree import Tree

from capsulekit.cache import Cache
from capsulekit.capsule.write import Member
from capsulekit.errors import CapsulekitError
from capsulekit.pack import Carried, PackOptions, pack
from capsulekit.progress import Progress
from capsulekit.sitepaths import SitePaths
from provisioner.sitekey import ensure_site_key, site_key_path
from provisioner.vnfs.perceus.archive import Contents, read_archive
from provisioner.vnfs.perceus.config import Config, read_config, read_hybridize, read_name

# Linux 4.14 reads a squashfs that is packed with zstd, as our layers are (fs/squashfs/zstd_wrapper.c).
OLDEST_KERNEL = (4, 14)


@dataclass(frozen=True)
class Found:
    """What was found in a Perceus capsule, for the admin to decide on."""

    path: Path
    name: str
    version: str
    config: Config
    contents: Contents
    hybridize: tuple[str, ...]

    def lines(self) -> list[str]:
        """In a few lines what it is and what would become of it."""
        held = self.contents
        told = [f"a Perceus capsule, signed by nobody: {held.paths} paths, {held.size / 1e6:.0f} MB in its root"]
        if self.config.kernel_args:
            told.append(f"kernel arguments, kept: {self.config.kernel_args}")
        told += [f"config line that only a shell could read, not kept: {line}" for line in self.config.unread]
        if self.hybridize:
            told.append(f"hybridize list, kept: {' '.join(self.hybridize)}")
        _, wrong = read_hybridize(held.hybridize)
        told += [f"line of its hybridize list that is no path, not kept: {line}" for line in wrong]
        if held.programs:
            told.append(f"programs for the master, never run and not kept: {' '.join(sorted(held.programs))}")
        told += [f"left out: {line}" for line in held.left_out]
        told += [
            f"script for nodes: {script.state}/{script.name} ({len(script.data)} bytes)" for script in held.scripts
        ]
        return told


# Shown what was found, it says whether the scripts go along; raises when the capsule is not to be converted at all.
Decide = Callable[[Found], bool]


def look(path: Path, limit: int) -> Found:
    """Read the whole archive and write nothing. Raises CapsulekitError."""
    return _found(path, read_archive(path, None, limit))


@contextmanager
def converted(
    paths: SitePaths, path: Path, limit: int, decide: Decide, kernel: str | None = None
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A capsule of ours made of a Perceus one, for the time of the block, and remarks. ``limit``: bytes unpacked.

    Raises CapsulekitError when it is no Perceus capsule, is damaged, or holds what no node of ours could boot.
    """
    if os.geteuid() != 0:
        raise CapsulekitError("converting a Perceus capsule needs root: it holds files of many owners")
    name, version = read_name(path.name)
    ensure_site_key(paths)
    work_root = paths.state / "work"
    work_root.mkdir(mode=0o700, parents=True, exist_ok=True)
    work_root.chmod(0o700)  # what is unpacked there may be setuid
    with Cache(work_root).scratch("perceus") as work:
        root = work / "root"
        root.mkdir(mode=0o755)
        found = _found(path, read_archive(path, root, limit))
        chosen = kernel or found.config.kernel
        _check_kernel(root, path, chosen)
        scripts = decide(found)
        options = PackOptions(
            root, work / f"{name}.vnfs", name, version, _there(root, chosen, kernel), "/sbin/init",
            found.config.kernel_args, work_root, live=False, carried=_carried(found, scripts=scripts),
        )  # fmt: skip
        try:
            made = pack(options, site_key_path(paths), bytes, Progress(live=False))
        except CapsulekitError as wrong:
            told = wrong.message.replace(str(root), f"the root of {path.name}")
            hint = wrong.hint or "mend its root where it is kept unpacked, and pack that: capsulekit pack ROOTDIR"
            raise CapsulekitError(f"{path} can't be converted: {told}", hint=hint, details=wrong.details) from wrong
        yield made.path, made.warnings


def _found(path: Path, contents: Contents) -> Found:
    name, version = read_name(path.name)
    return Found(path, name, version, read_config(contents.config), contents, read_hybridize(contents.hybridize)[0])


def _carried(found: Found, *, scripts: bool) -> Carried:
    members = []
    if found.hybridize:
        members.append(Member("hybridize", "".join(f"{glob}\n" for glob in found.hybridize).encode()))
    if found.contents.livesync_skip:
        members.append(Member("livesync.skip", found.contents.livesync_skip))
    if scripts:
        members += [Member(script.member, script.data) for script in found.contents.scripts]
    return Carried(found.hybridize, tuple(members))


def _kernels(root: Path) -> list[str]:
    return sorted(Tree(root).listing("usr/lib/modules"))


def _there(root: Path, chosen: str | None, asked: str | None) -> str | None:
    """The kernel to name to the packer: what config says only when it is there with its modules."""
    return chosen if asked or chosen in _kernels(root) else None


def _check_kernel(root: Path, path: Path, chosen: str | None) -> None:
    """Raise CapsulekitError when every kernel of the root that could be meant is too old for stage 2."""
    releases = _kernels(root)
    meant = [chosen] if chosen in releases else releases
    old = [release for release in meant if _number(release) < OLDEST_KERNEL]
    if meant and len(old) == len(meant):
        raise CapsulekitError(
            f"{path} can't be converted: its kernel {old[0]} is older than {'.'.join(map(str, OLDEST_KERNEL))} and "
            "can't read our layers (squashfs with zstd, overlay)",
            hint="install a newer kernel package in its root, or build its system anew from a recipe",
        )


def _number(release: str) -> tuple[int, int]:
    found = re.match(r"([0-9]{1,6})\.([0-9]{1,6})", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
