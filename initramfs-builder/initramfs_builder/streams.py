"""The bytes of an image, plain or unpacked, piece by piece: one compressed stream at a time, as the kernel reads them.

The kernel takes the four formats below as its own decompressors do: one zstd frame, gzip member or xz stream, then it
looks again at what follows. Their limits are its own: zstd's window (128 MiB) and xz's checksums (CRC32 or none).
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from initramfs_builder.cpio import ALIGNMENT, CHUNK
from initramfs_builder.errors import TrustError, printable

WINDOW_MAX = 128 << 20
PIECE = 1 << 16
XZ_MEMORY_MAX = 256 << 20
# Id of the checks that the kernel's xz decoder takes: none and CRC32 (its Documentation/staging/xz.rst).
XZ_CHECKS = (0, 1)
# Of a member's header (RFC 1952): "probably text", and a file's name, all that the kernel skips.
GZIP_FLAGS = 0x01 | 0x08
ZSTD_BLOCK_RLE, ZSTD_BLOCK_RESERVED = 1, 3
ZSTD_HEAD_MAX = 18  # magic and the largest frame header (RFC 8878, 3.1.1)


class Stream:
    """Bytes in order, with a place for errors to name. ``offset`` counts from where the kernel counts alignment."""

    kind = "plain"

    def __init__(self, name: str) -> None:
        self.name = name
        self.offset = 0
        self._buffer, self._at = b"", 0  # what was read, and how much of it was taken: cutting it each time is slow

    def peek(self, size: int) -> bytes:
        """The next bytes without taking them; fewer at the end."""
        while len(self._buffer) - self._at < size:
            more = self._more()
            if not more:
                break
            self._buffer, self._at = self._buffer[self._at :] + more, 0
        return self._buffer[self._at : self._at + size]

    def some(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end only."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._more(), 0
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self.offset += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        """Exactly ``size`` bytes; raises TrustError when there are fewer. The caller keeps ``size`` small."""
        at, pieces = self.offset, []
        while size:
            piece = self.some(size)
            if not piece:
                raise self.damaged("the image ends within an entry", at)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def skip_zeros(self) -> int:
        """Skip zeros that lie between archives, as far as they are at hand; how many they were."""
        self.peek(1)
        here = self._buffer[self._at :]
        size = len(here) - len(here.lstrip(b"\0"))
        self.some_exactly(size)
        return size

    def align(self) -> None:
        """Skip to a multiple of four; an image may end before it."""
        self.some_exactly(-self.offset % ALIGNMENT)

    def some_exactly(self, size: int) -> None:
        """Skip ``size`` bytes, fewer at the end."""
        while size and (piece := self.some(size)):
            size -= len(piece)

    def damaged(self, what: str, at: int | None = None) -> TrustError:
        """The error that says what was found and where."""
        where = f"at byte {self.offset if at is None else at}"
        if self.kind != "plain":
            where += f" of a {self.kind} stream"
        what = printable(what)
        return TrustError(f"{self.name} is a damaged image: {what} ({where})", hint="build or fetch it again")

    def _more(self) -> bytes:
        raise NotImplementedError


class Plain(Stream):
    """The image's own bytes."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(name)
        self._file = file

    def _more(self) -> bytes:
        return self._file.read(CHUNK)

    def give_back(self, data: bytes) -> None:
        """Put back what a decompressor was given and did not take."""
        self._buffer, self._at = data + self._buffer[self._at :], 0
        self.offset -= len(data)


class Packed(Stream):
    """One compressed stream within an image; the image goes on behind it."""

    def __init__(self, source: Plain, kind: str, pieces: Callable[[Packed], Iterator[bytes]]) -> None:
        super().__init__(source.name)
        self.source, self.kind, self.start = source, kind, source.offset
        self._pieces = pieces(self)

    @classmethod
    def begin(cls, source: Plain) -> Packed:
        """The stream that begins here; raises TrustError when nothing known does."""
        head = source.peek(8)
        for magic, (kind, pieces) in FORMATS.items():
            if head.startswith(magic):
                return cls(source, kind, pieces)
        for magic, kind in UNREAD.items():
            if head.startswith(magic):
                raise TrustError(
                    f"{source.name}: byte {source.offset} begins a stream of {kind}, which is not read here",
                    hint="pack the image with zstd, gzip or xz",
                )
        raise source.damaged(f"neither an archive nor a compressed stream, but {head.hex()}")

    def broken(self, why: object) -> TrustError:
        """The error of a stream that cannot be unpacked."""
        return TrustError(
            f"{self.name} is a damaged image: the {self.kind} stream at byte {self.start} cannot be unpacked: {why}",
            hint="build or fetch it again",
        )

    def _more(self) -> bytes:
        return next(self._pieces, b"")


def _zstd(stream: Packed) -> Iterator[bytes]:
    """One frame, block by block: each unpacks to 128 KiB at most, and the end is known exactly."""
    source = stream.source
    try:
        head = source.peek(ZSTD_HEAD_MAX)
        parameters = zstandard.get_frame_parameters(head)
        if parameters.window_size > WINDOW_MAX:
            raise stream.broken(f"its window of {parameters.window_size} bytes is more than the kernel takes")
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).decompressobj()
        unpacker.decompress(source.exactly(zstandard.frame_header_size(head)))
        last = False
        while not last:
            block = source.exactly(3)
            number = int.from_bytes(block, "little")
            last, kind = bool(number & 1), number >> 1 & 3
            if kind == ZSTD_BLOCK_RESERVED:
                raise stream.broken("a block of an unknown kind")
            size = 1 if kind == ZSTD_BLOCK_RLE else number >> 3
            if size > CHUNK:
                raise stream.broken(f"a block of {size} bytes")
            if last and parameters.has_checksum:
                size += 4
            if data := unpacker.decompress(block + source.exactly(size)):
                yield data
        if not unpacker.eof:
            raise stream.broken("it does not end where its last block does")
    except zstandard.ZstdError as error:
        raise stream.broken(error) from None


def _gzip(stream: Packed) -> Iterator[bytes]:
    flags = int.from_bytes(stream.source.peek(4)[3:])
    if flags & ~GZIP_FLAGS:
        raise stream.broken("its header has fields that the kernel does not skip")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        while not unpacker.eof:
            data = unpacker.unconsumed_tail or stream.source.some(PIECE)
            if not data:
                raise stream.broken("it is cut short")
            if piece := unpacker.decompress(data, CHUNK):
                yield piece
    except zlib.error as error:
        raise stream.broken(error) from None
    stream.source.give_back(unpacker.unused_data)


def _xz(stream: Packed) -> Iterator[bytes]:
    check = stream.source.peek(8)[7:8]
    if not check or check[0] not in XZ_CHECKS:
        raise stream.broken("its checksums are not CRC32, the kernel's decoder takes no others")
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)
        while not unpacker.eof:
            data = stream.source.some(PIECE) if unpacker.needs_input else b""
            if unpacker.needs_input and not data:
                raise stream.broken("it is cut short")
            if piece := unpacker.decompress(data, CHUNK):
                yield piece
    except lzma.LZMAError as error:
        raise stream.broken(error) from None
    stream.source.give_back(unpacker.unused_data)


FORMATS: dict[bytes, tuple[str, Callable[[Packed], Iterator[bytes]]]] = {
    struct.pack("<I", zstandard.MAGIC_NUMBER): ("zstd", _zstd),
    b"\x1f\x8b": ("gzip", _gzip),
    b"\xfd7zXZ\0": ("xz", _xz),
}
# The kernel may know these too; nothing here makes them.
UNREAD = {b"BZh": "bzip2", b"\x5d\0\0": "lzma", b"\x89LZO": "lzo", b"\x02\x21\x4c\x18": "lz4"}
