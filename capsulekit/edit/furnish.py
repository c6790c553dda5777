"""What programs expect in a root (/proc, /sys, /dev, /run, /tmp, name servers), mounted where the root really has it.

Services stay off: what Debian's tools ask first says no (policy-rc.d(8)). Nothing is written into the root itself.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.edit import syscalls
from capsulekit.errors import CapsulekitError

RESOLV_HERE = Path("/etc/resolv.conf")
MAX_RESOLV = 1 << 20  # bytes
RESOLV, POLICY_FILE = "etc/resolv.conf", "usr/sbin/policy-rc.d"
POLICY = b"#!/bin/sh\nexit 101\n"  # "action forbidden by policy"
NOSUID, NODEV, NOEXEC = syscalls.NOSUID, syscalls.NODEV, syscalls.NOEXEC
# Path, type of file system, flags, options; in this order.
MOUNTED = (
    ("proc", "proc", NOSUID | NODEV | NOEXEC, ""),
    ("sys", "sysfs", NOSUID | NODEV | NOEXEC | syscalls.RDONLY, ""),
    ("dev", "tmpfs", NOSUID | NOEXEC, "mode=0755,size=1m"),
    ("dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777"),
    ("run", "tmpfs", NOSUID | NODEV, "mode=0755"),
    ("tmp", "tmpfs", NOSUID | NODEV, "mode=1777"),
)
NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
LINKS = (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))
FOLDERS = ("pts", "shm")
# Files of ours lie in the fresh /run, under these names only until they are mounted where they belong.
_RESOLV_COPY, _POLICY_COPY = ".capsulekit-resolv.conf", ".capsulekit-policy"
PLACES = (*(path for path, *_ in MOUNTED), RESOLV, POLICY_FILE)


@dataclass(frozen=True)
class Furnisher:
    """Mounts into a root (``root``, a descriptor of it). ``follow``: links lead where they do inside the root.

    Without it a link is refused: from outside of the root, the place would not be found again. ``there`` are places
    where it is mounted already.
    """

    root: int
    follow: bool
    there: frozenset[str] = frozenset()

    def furnish(self) -> None:
        """Mount everything; raises CapsulekitError naming what stands in the way (what is mounted then, stays)."""
        for path, kind, flags, options in MOUNTED:
            if path in self.there:
                continue
            self._mount(path, kind, flags, options)
            if path == "dev":
                self._fill_dev()
        self._own_file(RESOLV, _RESOLV_COPY, _name_servers(), 0o644)
        self._own_file(POLICY_FILE, _POLICY_COPY, POLICY, 0o755)

    def _mount(self, path: str, kind: str, flags: int, options: str) -> None:
        try:
            with syscalls.opened_inside(self.root, path.encode(), follow=self.follow) as place:
                syscalls.mount(kind, syscalls.by_fd(place), kind, flags, options)
        except OSError as wrong:
            if wrong.errno == errno.ELOOP:
                raise CapsulekitError(f"/{path} in the capsule is a link: nothing is mounted there") from None
            raise CapsulekitError(f"can't mount {kind} on /{path} in the capsule: {wrong.strerror}") from wrong

    def _fill_dev(self) -> None:
        with syscalls.opened_inside(self.root, b"dev", os.O_RDONLY | os.O_DIRECTORY, follow=self.follow) as dev:
            for name, major, minor in NODES:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
                os.chmod(name, 0o666, dir_fd=dev)  # noqa: S103 (as on every machine, whatever the umask)
            for name, target in LINKS:
                os.symlink(target, name, dir_fd=dev)
            for name in FOLDERS:
                os.mkdir(name, 0o755, dir_fd=dev)

    def _own_file(self, path: str, name: str, data: bytes, mode: int) -> None:
        """Show a file of our own at ``path`` where there is a file, or a link into the fresh /run."""
        if path in self.there:
            return
        with syscalls.opened_inside(self.root, b"run", os.O_RDONLY | os.O_DIRECTORY, follow=self.follow) as run:
            _write(run, name, data, mode)
            try:
                with (
                    syscalls.opened_inside(self.root, path.encode(), follow=self.follow) as place,
                    syscalls.opened_inside(run, name.encode()) as copy,
                ):
                    if stat.S_ISREG(os.fstat(place).st_mode):
                        syscalls.mount(syscalls.by_fd(copy), syscalls.by_fd(place), "", syscalls.BIND)
            except OSError as wrong:
                if wrong.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise CapsulekitError(f"can't mount /{path} in the capsule: {wrong.strerror}") from wrong
                self._into_run(run, path, data, mode)
            os.unlink(name, dir_fd=run)

    def _into_run(self, run: int, path: str, data: bytes, mode: int) -> None:
        """A link such as ../run/systemd/resolve/stub-resolv.conf leads into the /run that is empty now."""
        from capsulekit.rootfs.place import Refused, inside

        root = Path(f"/proc/self/fd/{self.root}")
        with suppress(Refused, OSError):
            parts = [os.fsencode(part) for part in inside(root, f"/{path}").relative_to(root).parts]
            if parts[0] != b"run" or len(parts) < 2:
                return
            folder = os.dup(run)
            try:
                for part in parts[1:-1]:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=folder)
                    below = syscalls.open_inside(folder, part, os.O_RDONLY | os.O_DIRECTORY)
                    os.close(folder)
                    folder = below
                _write(folder, os.fsdecode(parts[-1]), data, mode)
            finally:
                os.close(folder)


def _write(folder: int, name: str, data: bytes, mode: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
    with os.fdopen(fd, "wb") as out:
        os.fchmod(out.fileno(), mode)
        out.write(data)


def _name_servers() -> bytes:
    try:
        with RESOLV_HERE.open("rb") as file:
            return file.read(MAX_RESOLV)
    except OSError:
        return b""  # a machine without name servers
