"""Images in memory, made of entries and read back by the real reader."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from initramfs_builder import cpio
from initramfs_builder.archive import Archive
from initramfs_builder.cpio import Entry, with_parents, write_cpio
from initramfs_builder.image import Image, collect
from initramfs_builder.stage import add_shell
from initramfs_builder.unpack import read_stream


def packed(entries: Iterable[Entry]) -> bytes:
    """A plain archive of the entries and the folders above them."""
    out = io.BytesIO()
    write_cpio(out, with_parents(entries), 0)
    return out.getvalue()


def image_of(entries: Iterable[Entry], name: str = "image") -> Image:
    """The same as an image that was read."""
    return collect(read_stream(io.BytesIO(packed(entries)), name), name)


def files_image(files: Mapping[str, str | bytes]) -> Image:
    """An image of files only, all of which can be executed."""
    contents = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    return image_of(cpio.regular(path, data, 0o755) for path, data in contents.items())


def shell_image(*folders: Path) -> Image:
    """An image with nothing but the shell of a stage."""
    archive = Archive()
    archive.add(cpio.symlink("lib", "usr/lib"))
    for folder in folders:
        add_shell(archive, folder)
    return image_of(archive.entries())
