"""Loop devices with numbers of our choice, and losetup(8).

An NFS server's handles name a squashfs by the number of its device. The next free one would be another one after each
start, and every file that a node has open would be gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.run import run

CONTROL = Path("/dev/loop-control")
# linux/loop.h, linux/major.h
LOOP_CTL_ADD, LOOP_CTL_REMOVE, LOOP_MAJOR = 0x4C80, 0x4C81, 7
PURPOSE = "export a hybrid layer"


def backing(device: str) -> str:
    """The file behind a loop device "MAJOR:MINOR", "" where there is none."""
    try:
        return Path(f"/sys/dev/block/{device}/loop/backing_file").read_text(encoding="utf-8").rstrip("\n")
    except OSError:
        return ""


def shows(device: str, image: Path) -> bool:
    """Whether a loop device shows this very file."""
    try:
        return Path(backing(device)).samefile(image)
    except OSError:
        return False


def attach(image: Path, number: int) -> Path | None:
    """The loop device of this number, read-only over ``image``; None where this kernel gives none of such a number.

    One that shows the image already, because we were killed or another master here needs it too, is taken as it is.
    Raises CapsulekitError when somebody else has the device.
    """
    if not _made(number):
        return None
    device = Path(f"/dev/loop{number}")
    here = f"{LOOP_MAJOR}:{number}"
    if backing(here):
        if not shows(here, image):
            raise CapsulekitError(f"{device} shows another file: {backing(here)}", hint=f"losetup -d {device}")
        return device
    run(["losetup", "--read-only", device, image], purpose=PURPOSE, timeout=30)
    return device


def let_go(device: Path) -> None:
    """Have a device go with its last mount: now, where there is none (LOOP_CLR_FD, loop(4))."""
    with suppress(CapsulekitError):
        run(["losetup", "--detach", device], purpose=PURPOSE, timeout=30)


def forget(number: int) -> None:
    """Take the device itself away, where nobody uses it."""
    with suppress(OSError):
        _control(LOOP_CTL_REMOVE, number)


def _made(number: int) -> bool:
    """Whether there is a device of that number now; its file is made where no devtmpfs does."""
    try:
        _control(LOOP_CTL_ADD, number)
    except OSError as error:
        if error.errno != errno.EEXIST:
            return False
    device = Path(f"/dev/loop{number}")
    with suppress(OSError):
        if not device.exists():
            os.mknod(device, stat.S_IFBLK | 0o660, os.makedev(LOOP_MAJOR, number))
    return device.exists()


def _control(what: int, number: int) -> None:
    fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, what, number)
    finally:
        os.close(fd)
