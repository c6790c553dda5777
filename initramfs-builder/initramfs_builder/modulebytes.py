"""A kernel module's bytes, compressed or not; no more is unpacked than a module may have."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator

import zstandard

from initramfs_builder.cpio import CHUNK
from initramfs_builder.errors import CapsulekitError

UNPACKED_MAX = 256 << 20
WINDOW_MAX = 256 << 20
PIECE = 1 << 10  # of compressed bytes: they unpack to 32 MiB at most (a block of 128 KiB takes 4 bytes)


def unpacked(data: bytes, path: str) -> bytes:
    """A file's bytes, unpacked when its name says that it is compressed. Raises CapsulekitError, also past 256 MiB."""
    suffix = path.rpartition(".")[2]
    if suffix not in UNPACKERS:
        return data
    pieces, size = [], 0
    try:
        for piece in UNPACKERS[suffix](data):
            pieces.append(piece)
            size += len(piece)
            if size > UNPACKED_MAX:
                raise CapsulekitError(f"{path} cannot be unpacked: it is more than {UNPACKED_MAX >> 20} MiB")
    except (lzma.LZMAError, zstandard.ZstdError, zlib.error, OSError, EOFError) as error:
        raise CapsulekitError(f"{path} cannot be unpacked: {error}") from None
    return b"".join(pieces)


def _zstd(data: bytes) -> Iterator[bytes]:
    """One frame, its end asked for: a reader would take one that is cut short for whole."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).decompressobj()
    for start in range(0, len(data), PIECE):
        yield unpacker.decompress(data[start : start + PIECE])
        if unpacker.eof:
            return
    raise EOFError("it is cut short")


def _gzip(data: bytes) -> Iterator[bytes]:
    with gzip.open(io.BytesIO(data)) as stream:
        while piece := stream.read(CHUNK):
            yield piece


def _xz(data: bytes) -> Iterator[bytes]:
    with lzma.open(io.BytesIO(data)) as stream:
        while piece := stream.read(CHUNK):
            yield piece


UNPACKERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {"zst": _zstd, "xz": _xz, "gz": _gzip}
