"""Hybridize: which of a root's paths live in the hybrid layer, on the network, instead of in each node's memory.

A glob that names a folder means everything below it, as in Perceus. Folders themselves stay on the node, and so does
whatever the network cannot carry faithfully, and what the node needs to boot (closure.py); a glob that means just
such a path is an error.
"""

from __future__ import annotations

import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import zstandard
from initramfs_builder.tree import merged

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.globs import anchored, regex

# A layer's blocks are compressed one by one, a mebibyte each.
BLOCK_LOG = 20
WORLD_READ, WORLD_ENTER, SET_ID = 0o004, 0o001, 0o6000
PIECE = 1 << 20  # bytes of a stream at once


class Readable(Protocol):
    """All that is asked of a member's content: ``size`` in bytes, below 0 for the rest."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; b"" at the end."""


@dataclass(frozen=True, order=True)
class Kept:
    """A path that a hybridize glob matches and that stays in the root's own layer, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Moved:
    """What one glob moved: how many paths, their bytes unpacked, and about what they would take in a node's memory."""

    paths: int
    unpacked: int
    packed: int


class Hybrid:
    """The hybridize list of a recipe, or a site's, over one root: ``globs`` as its author wrote them.

    ``closure`` is what the root needs to boot: merged path (see initramfs_builder.tree) -> the chain that needs it.
    ``acls`` are the paths of which an ACL is known beside the tar; ``taken`` are folders that no glob may take from, by
    merged path with the reason. ``where`` names the list in errors. Call ``scan`` before anything is asked.
    Raises CapsulekitError for a bad glob, and for one that lies in a taken folder altogether.
    """

    def __init__(
        self,
        globs: Sequence[str],
        closure: Mapping[str, str],
        *,
        acls: Collection[str] = (),
        taken: Mapping[str, str] | None = None,
        where: str = "[hybridize]",
    ) -> None:
        self.globs = tuple(globs)
        self.kept: tuple[Kept, ...] = ()
        self._closure, self._acls, self._taken, self._where = closure, acls, taken or {}, where
        self._moved: dict[str, str] = {}
        self._leading: set[str] = set()
        self._matched: set[str] = set()
        # /lib is taken for /usr/lib, which it is a link to (or would be).
        pairs = [(re.compile(regex(merged(anchored(glob))) + "(?:/.*)?", re.DOTALL), glob) for glob in globs]
        self._patterns = pairs
        for glob in globs:
            fixed = merged(anchored(glob).partition("*")[0].partition("?")[0].partition("[")[0])
            if why := self._why_taken(fixed):
                raise CapsulekitError(f"{where}: {glob} is refused: {why}", hint="take it out of the list")

    def scan(self, tar: Path) -> None:
        """Decide every path of a root's tar by its headers alone; see scan_stream."""
        with tar.open("rb") as stream:
            self.scan_stream(stream)

    def scan_stream(self, tar: IO[bytes]) -> None:
        """Decide every path of a root's tar, read to its end, by its headers alone.

        Raises CapsulekitError when a glob means what the node needs to boot, naming the chain, or takes from a taken
        folder.
        """
        wanted, closed, stays = {}, set(), {}
        links: dict[str, list[str]] = defaultdict(list)
        for path, member in _headers(tar):
            if member.isdir():
                if not member.mode & WORLD_ENTER:
                    closed.add(path)
                continue
            if member.islnk():
                links[member.linkname.removeprefix("./")].append(path)
            glob = self._glob(path)
            if glob is not None:
                wanted[path] = glob
                if reason := "it has an ACL" if path in self._acls else _stays(member):
                    stays[path] = reason
        self._keep_needed(wanted, stays)
        self._refuse_taken(wanted)
        self._matched = set(wanted.values())
        for path in wanted:
            if folder := next((f for f in _folders(path) if f in closed), None):
                stays.setdefault(path, f"not everyone may enter /{folder}")
        self._keep_sets_together(links, wanted, stays)
        self.kept = tuple(sorted(Kept(path, reason) for path, reason in stays.items()))
        self._moved = {path: glob for path, glob in wanted.items() if path not in stays}
        self._leading = {folder for path in self._moved for folder in _folders(path)}

    def moves(self, path: str) -> str | None:
        """The glob that moves a path (without leading slash) to the hybrid layer, or None."""
        return self._moved.get(path)

    def leads(self, path: str) -> bool:
        """Whether a folder leads to a moved path, so that the hybrid layer has it too."""
        return path in self._leading

    def matches(self, path: str) -> bool:
        """Whether a glob matches a path, wherever it lies."""
        return self._glob(path) is not None

    @property
    def empty(self) -> bool:
        """Whether nothing moves: then there is no hybrid layer."""
        return not self._moved

    def unmatched(self) -> list[str]:
        """Globs that match no path of the root (a folder alone is none)."""
        return [glob for glob in self.globs if glob not in self._matched]

    def _glob(self, path: str) -> str | None:
        name = merged(path)
        return next((glob for pattern, glob in self._patterns if pattern.fullmatch(name)), None)

    def _keep_needed(self, wanted: Mapping[str, str], stays: dict[str, str]) -> None:
        """What a node needs to boot stays where a glob names a folder above it; a glob that means just that is refused.

        (Perceus's own list begins with /usr/share, and somewhere in there a few files always are needed.)
        """
        needed = {path: self._closure[merged(path)] for path in wanted if merged(path) in self._closure}
        of_use = {glob for path, glob in wanted.items() if path not in needed}
        refused = sorted(path for path in needed if wanted[path] not in of_use or self._means(wanted[path], path))
        if refused:
            first = refused[0]
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise CapsulekitError(
                f"{self._where} {wanted[first]} takes /{first}{more}, which a node needs to boot: {needed[first]}",
                hint="name narrower globs, so that it stays on the node",
            )
        stays |= {path: f"a node needs it to boot ({why.partition(':')[0]})" for path, why in needed.items()}

    @staticmethod
    def _means(glob: str, path: str) -> bool:
        """Whether a glob matches a path by its own name, and not by that of a folder above it."""
        named = merged(anchored(glob.rstrip("/").removesuffix("/**") or glob))
        return re.fullmatch(regex(named), merged(path), re.DOTALL) is not None

    def _refuse_taken(self, wanted: Mapping[str, str]) -> None:
        for path in wanted if self._taken else ():
            if why := self._why_taken(merged(path)):
                raise CapsulekitError(
                    f"{self._where} {wanted[path]} takes /{path}, which is refused: {why}", hint="name narrower globs"
                )

    def _why_taken(self, name: str) -> str:
        """The reason why a merged path is in a taken folder, or is one; "" when it is not."""
        return next((self._taken[folder] for folder in (name, *_folders(name)) if folder in self._taken), "")

    @staticmethod
    def _keep_sets_together(links: Mapping[str, list[str]], wanted: Mapping[str, str], stays: dict[str, str]) -> None:
        """Names of one file move together or stay: one that stays holds the others."""
        for first, others in links.items():
            names = [first, *others]
            held = next((n for n in names if n in stays or n not in wanted), None)
            if held is None:
                continue
            for name in names:
                if name in wanted:
                    stays.setdefault(name, f"the same file as /{held}, which stays")


def forget(tar: tarfile.TarFile) -> None:
    """Drop the headers seen so far, which a TarFile would keep for as long as it is open."""
    tar.members.clear()  # type: ignore[attr-defined]


def _headers(tar: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    # A file is skipped through, a pipe has to be read.
    mode: Literal["r:", "r|"] = "r:" if tar.seekable() else "r|"
    try:
        with tarfile.open(
            fileobj=tar, mode=mode, bufsize=PIECE, errorlevel=2, encoding="utf-8", errors="surrogateescape"
        ) as opened:
            for member in opened:
                yield member.name.removeprefix("./").strip("/"), member
                forget(opened)
    except tarfile.TarError as error:
        raise CapsulekitError(f"the root file system's tar broke off: {error}") from None


def _folders(path: str) -> Iterator[str]:
    """The folders above a path, the nearest first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _stays(member: tarfile.TarInfo) -> str:
    """Why a path must stay, by itself; "" when it may leave."""
    keys = [key.removeprefix("SCHILY.xattr.") for key in member.pax_headers if key.startswith("SCHILY.")]
    if member.ischr() or member.isblk() or member.isfifo():
        return "a device or a fifo"
    if "security.capability" in keys:
        return "it has capabilities"
    if any("acl" in key for key in keys):
        return "it has an ACL"
    if any(not key.startswith("trusted.") for key in keys):
        return "it has extended attributes"
    if member.isreg() and member.mode & SET_ID:
        return "setuid or setgid"
    if member.isreg() and not member.mode & WORLD_READ:
        return "not everyone may read it"
    return ""


class Tally:
    """Counts what one glob moves."""

    def __init__(self) -> None:
        self._paths = self._unpacked = self._packed = 0
        block = zstandard.ZstdCompressionParameters.from_level(3, window_log=BLOCK_LOG)
        self._zstd = zstandard.ZstdCompressor(compression_params=block).compressobj()

    def counted(self, data: Readable | None) -> Readable | None:
        """Count one path; its content, if any, is counted as it is read from what is returned."""
        self._paths += 1
        return None if data is None else _Counted(data, self._count)

    def result(self) -> Moved:
        """The sums, when everything has been read."""
        return Moved(self._paths, self._unpacked, self._packed + len(self._zstd.flush()))

    def _count(self, data: bytes) -> None:
        self._unpacked += len(data)
        self._packed += len(self._zstd.compress(data))


class _Counted:
    """A stream that shows what is read from it."""

    def __init__(self, stream: Readable, show: Callable[[bytes], None]) -> None:
        self._stream, self._show = stream, show

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._show(data)
        return data


def describe(moved: Mapping[str, Moved], kept: Sequence[Kept]) -> list[str]:
    """Lines for people: what each hybridize glob saves, and what stays although a glob matches it, by reason."""
    lines = [f"{glob}: {_saved(one)}" for glob, one in moved.items()]
    reasons: dict[str, list[str]] = defaultdict(list)
    for each in kept:
        reasons[each.reason].append(each.path)
    for reason, paths in sorted(reasons.items()):
        more = f" and {len(paths) - 1} more stay" if len(paths) > 1 else " stays"
        lines.append(f"/{paths[0]}{more} on the node: {reason}")
    return lines


def _saved(one: Moved) -> str:
    if not one.paths:
        return "nothing leaves the node"
    packed, unpacked = _megabytes(one.packed), _megabytes(one.unpacked)
    return f"{one.paths} paths stay out of RAM, which saves {packed} ({unpacked} unpacked)"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
