"""Layers: squashfs images written from a tar stream, the same bytes on every machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError
from capsulekit.run import CLOCK, DiskFull, announce, as_root_by_name, failed, run, tied, tool

BLOCK = 1 << 20
MEMORY = "256M"


def version() -> str:
    """What mksquashfs says of its version."""
    return run(["mksquashfs", "-version"], purpose="write a layer")


@contextmanager
def layer_from_tar(
    out: Path, epoch: int, level: int, *, exported: bool = False, keep_times: bool = False
) -> Iterator[IO[bytes]]:
    """A stream that takes a tar and makes the squashfs ``out`` of it.

    zstd of ``level``, 1 MiB blocks, all times ``epoch`` (seconds since 1970), or those of the tar with ``keep_times``;
    the root folder is 0755 and root's. ``exported`` adds the table that an NFS server needs; from a tar, mksquashfs
    leaves it out.
    Nothing is left at ``out`` when anything fails; a full disk is said as such (DiskFull).
    """
    argv = [*_words(out, epoch, level), *(["-exports"] if exported else [])]
    argv += [] if keep_times else ["-all-time", str(epoch)]
    # SOURCE_DATE_EPOCH beside -mkfs-time is fatal to squashfs-tools 4.5, so the environment is made anew.
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", **CLOCK}
    announce(argv)
    try:
        # In memory: on a full disk its words would be lost.
        with os.fdopen(os.memfd_create("log"), "w+b") as errors:
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=env)
            assert child.stdin is not None
            broken = False
            try:
                yield child.stdin
            except BrokenPipeError:
                broken = True  # the child has ended: its own words, below, say why
            except BaseException:
                child.kill()
                raise
            finally:
                with suppress(OSError):
                    child.stdin.close()
                status = child.wait()
            errors.seek(0)
            _check(argv, status or int(broken), errors.read(), out)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _words(out: Path, epoch: int, level: int) -> list[str | Path]:
    # (sqfstar 4.5.1, the same program by another name, cannot read a compressor's options.)
    return [
        # The root folder of an image made from a tar belongs to whoever makes it (-root-uid came with 4.6).
        *as_root_by_name("write a layer"),
        *tied("KILL", "write a layer"),
        tool("mksquashfs", "write a layer"),
        "-",
        out,
        "-tar",
        "-comp",
        "zstd",
        "-Xcompression-level",
        str(level),
        "-b",
        str(BLOCK),
        "-mkfs-time",
        str(epoch),
        "-mem",  # it would fill a quarter of the machine's memory; the bytes and the time are the same
        MEMORY,
        "-root-mode",
        "0755",
        "-no-progress",
        "-quiet",
    ]


def _check(argv: list[str | Path], status: int, printed: bytes, out: Path) -> None:
    text = printed.decode("utf-8", "replace")
    if "No space left on device" in text:
        raise DiskFull(
            f"the disk is full while packing {out.name} in {out.parent}",
            hint="free some space, or choose another place with --cache-dir",
        )
    # mksquashfs goes on after "Unrecognised xattr prefix" and exits 0: nothing must be lost in silence.
    lost = [line for line in text.splitlines() if "nrecogni" in line or "ignoring" in line.lower()]
    # It tells that a name or an attribute is no UTF-8, and mksquashfs takes the bytes as they are anyway.
    lost = [line for line in lost if 'keyword "hdrcharset"' not in line]
    if status == 0 and lost:
        raise CapsulekitError(f"{out.name} cannot hold everything: {lost[0].strip()}")
    if status != 0:
        raise failed(argv, f"write the layer {out.name}", status, printed)
