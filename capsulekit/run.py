"""The one door for child processes: argument lists only, never a shell; a failure says what the program was for."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError

# Which Debian package brings a program, for the way out of "not installed".
PACKAGE_OF = {
    "apt-get": "apt",
    "depmod": "kmod",
    "dnsmasq": "dnsmasq-base",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "losetup": "mount",
    "minisign": "minisign",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "sqfstar": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
}


class ToolMissing(CapsulekitError):
    """A program that is needed is not installed."""


class CommandFailed(CapsulekitError):
    """A child process ended with a non-zero status; ``status`` and the end of its ``output`` are kept."""

    def __init__(self, message: str, *, hint: str | None, status: int, output: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.output = output


def tool(name: str, purpose: str) -> str:
    """The full path of a program, looked up in PATH and in the system folders; raises ToolMissing."""
    search = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(name, path=search)
    if found is None:
        package = PACKAGE_OF.get(name, name)
        raise ToolMissing(f"{name} is not installed; it is needed to {purpose}", hint=f"apt-get install {package}")
    return found


def run(
    argv: Sequence[str | Path],
    *,
    purpose: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return what it printed on stdout (text, UTF-8 with replacement).

    ``purpose`` completes the sentence "… is needed to PURPOSE"; it also heads the error. ``env`` replaces the
    environment. Raises ToolMissing, or CommandFailed with the last lines of stderr and a command to paste.
    """
    args = [tool(str(argv[0]), purpose), *(str(a) for a in argv[1:])]
    feed = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
    try:
        done = subprocess.run(args, cwd=cwd, env=env, capture_output=True, timeout=timeout, check=False, **feed)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as late:
        raise CapsulekitError(f"{argv[0]} did not finish within {timeout:.0f} s (to {purpose})") from late
    if done.returncode != 0:
        raise failed(argv, purpose, done.returncode, done.stderr or done.stdout)
    return str(done.stdout.decode("utf-8", "replace"))


def failed(argv: Sequence[str | Path], purpose: str, status: int, output: bytes) -> CommandFailed:
    """The error for a child that ended badly: its last telling line, and the command to paste."""
    text = output.decode("utf-8", "replace").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E:", "error", "FATAL", "fatal")) or "rror:" in line]
    last = (telling or lines or ["it printed nothing"])[-1]
    return CommandFailed(
        f"could not {purpose}: {Path(str(argv[0])).name} failed with status {status}: {last}",
        hint="try it by hand: " + shlex.join(str(a) for a in argv),
        status=status,
        output=text,
    )
