"""Capsules as Perceus 1.x made them: a bzip2 tar of rootfs/ and what its builders put beside it."""

from __future__ import annotations

import bz2
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

CONFIG = """# Perceus VNFS configuration
KEXEC=kexec
COMPRESSION=low
BACKUP=no
HYBRIDIZE_FILE=/etc/perceus/vnfs/NAME/hybridize
# KERNEL=/boot/vmlinuz-0.0.1
KERNEL=/boot/vmlinuz-{release}
KERNEL_ARGS="ramdisk_blocksize=1024 console=ttyS0"
KEXEC_ARGS=`echo --args-linux; touch /tmp/ran`
"""
HYBRIDIZE = "# on the network\n/usr/share\n/usr/X11R6\n/usr/lib/locale # big\n\nusr/src\n"
PROGRAMS = ("mount", "umount", "close", "configure", "livesync")
BESIDE = {
    "vmlinuz": b"This is a placeholder\n",
    "vnfs.img": b"",
    "master-includes": b"/etc/dat.conf\n",
    "hybridize": HYBRIDIZE.encode(),
    "livesync.skip": b"/etc/passwd\n/home\n",
    "nodescripts/init/10-vnfsinit.sh": b"#!/bin/sh\nkexec\n",
    "nodescripts/init/89-vnfsinit.sh": b"#!/bin/sh\nkexec\n",
    "nodescripts/init/50-local.sh": b"#!/bin/sh\necho local\n",
    **dict.fromkeys(PROGRAMS, b"#!/bin/sh\ntouch /tmp/ran\n"),
}
Member = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object) -> Member:
    """One member of a forged archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def forged(out: Path, members: list[Member], change: Callable[[bytes], bytes] = lambda data: data) -> Path:
    """An archive of just these members; ``change`` sees the tar before it is packed."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    out.write_bytes(bz2.compress(change(plain.getvalue()), 1))
    return out


def beside(release: str = "6.1.0-test") -> list[Member]:
    """All that lies beside the root."""
    config = entry("./config", CONFIG.replace("{release}", release).encode())
    return [config, *(entry(f"./{name}", data) for name, data in BESIDE.items())]


def perceus_capsule(
    out: Path, root: Path, release: str = "6.1.0-test", scripts: Mapping[str, bytes] | None = None
) -> Path:
    """What chroot2stateless.sh would make of ``root``; ``scripts`` are more of its nodescripts, by STATE/NN-NAME."""
    more = [entry(f"./nodescripts/{name}", data) for name, data in (scripts or {}).items()]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in [*beside(release), *more]:
            tar.addfile(info, io.BytesIO(data))
        tar.add(root, "./rootfs")
    out.write_bytes(bz2.compress(plain.getvalue(), 1))
    return out


def everything(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {
        str((Path(top) / name).relative_to(folder)) for top, dirs, files in os.walk(folder) for name in dirs + files
    }
