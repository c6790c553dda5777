"""Divides a root into the layer that stays on the nodes and the one that lies on the network: again, from a tree.

``capsulekit build`` does the same while it makes a root. This is for a root that was made already: nothing of it is
changed but where it lies.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError
from capsulekit.image.squashfs import layer_from_tar
from capsulekit.image.tree import tar_of
from capsulekit.rootfs.hybrid import Hybrid, Moved, Readable, Tally, forget

PIECE = 1 << 20  # bytes of a stream at once
XATTR = "SCHILY.xattr."


@dataclass(frozen=True)
class Split:
    """``rootfs`` and ``hybrid`` (None: nothing moved) are the layers' files; ``unpacked`` the first one's bytes.

    ``moved`` says by glob what went to the hybrid layer.
    """

    rootfs: Path
    unpacked: int
    hybrid: Path | None
    moved: Mapping[str, Moved]


def split_root(root: Path, out: Path, hybrid: Hybrid, epoch: int, level: int) -> Split:
    """Pack the tree ``root`` into ``out``/rootfs.squashfs and, as ``hybrid`` decides, ``out``/hybrid.squashfs.

    ``hybrid`` is scanned here. All times become ``epoch``, ``level`` is zstd's. Raises CapsulekitError for a glob that
    takes what must stay; nothing is left in ``out`` then.
    """
    log = out / "tar.log"
    with tar_of(root, ["."], log) as tar:
        hybrid.scan_stream(tar)
    local, shared = out / "rootfs.squashfs", None if hybrid.empty else out / "hybrid.squashfs"
    with ExitStack() as stack:
        sinks = [stack.enter_context(layer_from_tar(local, epoch, level))]
        if shared is not None:
            sinks.append(stack.enter_context(layer_from_tar(shared, epoch, level, exported=True)))
        source = stack.enter_context(tar_of(root, ["."], log))
        writer = _Writer(hybrid, epoch, *sinks)
        writer.stream(source)
    log.unlink(missing_ok=True)
    return Split(local, writer.unpacked, shared, writer.moved)


class _Writer:
    """Sends every path of one tar to one of two."""

    def __init__(self, hybrid: Hybrid, epoch: int, local: IO[bytes], shared: IO[bytes] | None = None) -> None:
        self.unpacked = 0
        self.moved: Mapping[str, Moved] = {}
        self._hybrid, self._epoch, self._sinks = hybrid, epoch, (local, shared)
        self._tallies = {glob: Tally() for glob in hybrid.globs}

    def stream(self, source: IO[bytes]) -> None:
        """Read the tar to its end. Raises CapsulekitError when it breaks off."""
        sinks = [_opened(sink) if sink is not None else None for sink in self._sinks]
        try:
            with tarfile.open(
                fileobj=source, mode="r|", bufsize=PIECE, errorlevel=2, encoding="utf-8", errors="surrogateescape"
            ) as tar:
                for member in tar:
                    self._one(member, tar.extractfile(member) if member.isreg() else None, *sinks)
                    for opened in (tar, *sinks):
                        if opened is not None:
                            forget(opened)
        except tarfile.TarError as error:
            raise CapsulekitError(f"the tar of the root broke off: {error}") from None
        for opened, sink in zip(sinks, self._sinks, strict=True):
            # What packs a layer may end at the end mark, before the padding; if it failed, its status says so.
            with suppress(BrokenPipeError):
                if opened is not None and sink is not None:
                    opened.close()
                    sink.flush()
        self.moved = {glob: tally.result() for glob, tally in self._tallies.items()}

    def _one(
        self, member: tarfile.TarInfo, data: Readable | None, local: tarfile.TarFile | None,
        shared: tarfile.TarFile | None,
    ) -> None:  # fmt: skip
        path = member.name.removeprefix("./").strip("/")
        if path in ("", "."):
            return  # the root folder itself: layer_from_tar sets its mode and owner
        assert local is not None
        glob = self._hybrid.moves(path)
        kept = {k: v for k, v in member.pax_headers.items() if k.startswith(XATTR) and not k.startswith(_MARKS)}
        member.mtime, member.uname, member.gname, member.pax_headers = self._epoch, "", "", {}
        if glob is not None:
            assert shared is not None
            shared.addfile(member, self._tallies[glob].counted(data))
            return
        if member.isdir() and self._hybrid.leads(path):
            assert shared is not None
            shared.addfile(member)
        member.pax_headers = kept
        local.addfile(member, data)
        self.unpacked += member.size if member.isreg() else 0


# An overlay's own marks: nothing lies below the two layers that come out.
_MARKS = f"{XATTR}trusted."


def _opened(sink: IO[bytes]) -> tarfile.TarFile:
    out = tarfile.TarFile.open(
        fileobj=sink, mode="w|", bufsize=PIECE, format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    )
    out.copybufsize = PIECE  # type: ignore[attr-defined]  # documented, but not known to the type checker
    return out
