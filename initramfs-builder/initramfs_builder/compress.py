"""The compressions an image can have, and which of them a kernel unpacks.

Every stream is made so that the kernel's own decompressor takes it: zstd with a window of at most 128 MiB (and a
kernel from 5.9 on), xz with CRC32 sums and no branch filter (Documentation/staging/xz.rst), gzip as it comes.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import zstandard

from initramfs_builder.cpio import Sink
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.tree import Tree

# Past level 19 zstd's window can grow beyond 128 MiB, which is what the kernel takes at most.
LEVEL_MAX = 19
# zstd's bytes differ between none and some workers, but not between numbers of workers: never left to the core count.
WORKERS = 1
ZSTD_SINCE = (5, 9)
# Where distributions leave a kernel's configuration: Debian's kin, Fedora's kin.
CONFIGS = ("boot/config-{release}", "usr/lib/modules/{release}/config")
SAMPLE = b"".join(hashlib.sha256(bytes([number % 7, number % 31])).digest() for number in range(1024))


class Compression(ABC):
    """One compression; ``option`` is the kernel's that unpacks it."""

    name: str
    option: str

    @abstractmethod
    def stream(self, out: Sink, level: int, size: int) -> AbstractContextManager[Sink]:
        """A context manager that gives a sink; what it is given, ``size`` bytes, is one stream in ``out``."""

    @abstractmethod
    def version(self) -> str:
        """Which library makes the bytes."""

    def identity(self, level: int) -> str:
        """Everything but the content that decides the bytes."""
        return f"{self.name} {self.version()} level {level}"


class Zstd(Compression):
    """One frame, its size in the header, with a checksum."""

    name, option = "zstd", "CONFIG_RD_ZSTD"

    def stream(self, out: Sink, level: int, size: int) -> AbstractContextManager[Sink]:
        """See Compression."""
        compressor = zstandard.ZstdCompressor(level=level, threads=WORKERS, write_checksum=True)
        return compressor.stream_writer(out, size=size, closefd=False)  # type: ignore[arg-type]

    def version(self) -> str:
        """See Compression."""
        return ".".join(map(str, zstandard.ZSTD_VERSION))


class _Coder(Compression):
    """What Python's own libraries compress."""

    @abstractmethod
    def coder(self, level: int) -> object:
        """A new compressor: compress() and flush()."""

    @contextmanager
    def stream(self, out: Sink, level: int, size: int) -> Iterator[Sink]:
        """See Compression."""
        del size
        coder = self.coder(min(level, 9))
        yield _Writer(out, coder)
        out.write(coder.flush())  # type: ignore[attr-defined]


class _Writer:
    def __init__(self, out: Sink, coder: object) -> None:
        self.out, self.coder = out, coder

    def write(self, data: bytes, /) -> int:
        self.out.write(self.coder.compress(data))  # type: ignore[attr-defined]
        return len(data)


class Xz(_Coder):
    """One stream with CRC32 sums."""

    name, option = "xz", "CONFIG_RD_XZ"

    def coder(self, level: int) -> lzma.LZMACompressor:
        """See _Coder."""
        return lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, preset=level)

    @cache  # noqa: B019 (there is one of it)
    def version(self) -> str:
        """Python does not say the library's version, so it is told by what it makes."""
        return hashlib.sha256(lzma.compress(SAMPLE, check=lzma.CHECK_CRC32)).hexdigest()[:16]


class Gzip(_Coder):
    """One member, without a time or a name."""

    name, option = "gzip", "CONFIG_RD_GZIP"

    def coder(self, level: int) -> object:
        """See _Coder."""
        return zlib.compressobj(level, wbits=31)

    def version(self) -> str:
        """See Compression."""
        return zlib.ZLIB_RUNTIME_VERSION


# Best first.
COMPRESSIONS: tuple[Compression, ...] = (Zstd(), Xz(), Gzip())
ZSTD, _, GZIP = COMPRESSIONS


def compression_for(tree: Tree, release: str) -> tuple[Compression, str | None]:
    """The best compression that the kernel of a tree unpacks, and a remark where that had to be guessed.

    Read from the kernel's configuration; without one, zstd is taken from release 5.9 on and gzip before. Raises
    CapsulekitError when the kernel unpacks no initramfs, or none of ours.
    """
    for pattern in CONFIGS:
        found = tree.resolve(pattern.format(release=release))
        if found is not None and found.host.is_file():
            return _configured(found.host.read_text("utf-8", "replace"), found.path, release), None
    numbers = re.match(r"(\d+)\.(\d+)", release)
    taken = ZSTD if numbers and (int(numbers[1]), int(numbers[2])) >= ZSTD_SINCE else GZIP
    return taken, f"kernel {release} comes without its configuration: {taken.name} is taken by its number"


def _configured(text: str, path: str, release: str) -> Compression:
    options = {line.removesuffix("=y") for line in text.splitlines() if line.endswith("=y")}
    if "CONFIG_BLK_DEV_INITRD" not in options:
        raise CapsulekitError(f"kernel {release} takes no initramfs: {path} has no CONFIG_BLK_DEV_INITRD=y")
    for one in COMPRESSIONS:
        if one.option in options:
            return one
    wanted = ", ".join(one.option for one in COMPRESSIONS)
    raise CapsulekitError(
        f"kernel {release} unpacks none of our compressions: {path} has none of {wanted}", hint="take another kernel"
    )
