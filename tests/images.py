"""Images taken apart for tests by nothing of ours: where each archive ends, and real decompressors' libraries."""

from __future__ import annotations

import lzma
import subprocess
import zlib
from pathlib import Path

import zstandard

TRAILER = b"TRAILER!!!\0"


def archives(image: bytes) -> list[bytes]:
    """The plain archives in an image, in their order; compressed streams that follow one another are one archive."""
    found, at = [], 0
    while at < len(image):
        if image[at] == 0:
            at += 1
        elif image.startswith(b"070701", at):
            assert at % 4 == 0
            end = image.index(TRAILER, at) + len(TRAILER)
            end += -end % 4
            found.append(image[at:end])
            at = end
        else:
            found.append(b"".join(streams(image[at:])))
            break
    return found


def streams(data: bytes) -> list[bytes]:
    """What each of several compressed streams, one behind the other, unpacks to; zeros may follow the last."""
    found = []
    while data.strip(b"\0"):
        one: zstandard.ZstdDecompressionObj | lzma.LZMADecompressor | object
        if data.startswith(b"\xfd7zXZ"):
            one = lzma.LZMADecompressor()
        elif data.startswith(b"\x1f\x8b"):
            one = zlib.decompressobj(wbits=31)
        else:
            one = zstandard.ZstdDecompressor().decompressobj()
        found.append(one.decompress(data))  # type: ignore[attr-defined]
        assert one.eof  # type: ignore[attr-defined]
        data = one.unused_data  # type: ignore[attr-defined]
    return found


def without_padding(data: bytes) -> bytes:
    """Compressed streams without the zeros behind the last one."""
    for end in range(len(data) - 3, len(data) + 1):
        try:
            streams(data[:end])
        except AssertionError:
            continue
        return data[:end]
    raise AssertionError("no whole streams")


def names_in(image: bytes) -> set[str]:
    """Every path that the real cpio lists."""
    found: set[str] = set()
    for archive in archives(image):
        done = subprocess.run(["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True)
        found |= set(done.stdout.decode().splitlines())
    return found


def unpack_image(image: bytes, folder: Path) -> Path:
    """Unpack an image with the real cpio into a new folder."""
    folder.mkdir()
    for archive in archives(image):
        subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=folder, check=True)
    return folder
