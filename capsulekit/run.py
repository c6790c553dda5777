"""The one door for child processes: argument lists only, never a shell; a failure says what the program was for."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import threading
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
    "env": "coreutils",
    "ip": "iproute2",
    "losetup": "mount",
    "minisign": "minisign",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "sqfstar": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
}

NO_SPACE = re.compile(r"No space left on device|enough free space in|Disk quota exceeded")
# A command longer than this (hundreds of packages) is shown by its beginning.
LONG = 400


class ToolMissing(CapsulekitError):
    """A program that is needed is not installed."""


class DiskFull(CapsulekitError):
    """A child process ended because there was no space left to write to."""


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
    environment; ``timeout`` is in seconds. The program ends when we do, even killed. Raises ToolMissing, DiskFull, or
    CommandFailed with the last telling line and a command to paste.
    """
    args = [*tied("KILL", purpose), tool(str(argv[0]), purpose), *(str(a) for a in argv[1:])]
    source = subprocess.PIPE if isinstance(stdin, bytes) else stdin or subprocess.DEVNULL
    with subprocess.Popen(
        args, cwd=cwd, env=env, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            out, err = child.communicate(stdin if isinstance(stdin, bytes) else None, timeout)
        except subprocess.TimeoutExpired as late:
            child.kill()
            raise CapsulekitError(f"{argv[0]} did not finish within {late.timeout:g} s (to {purpose})") from None
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise failed(argv, purpose, child.returncode, err + out)
    return out.decode("utf-8", "replace")


def tied(signal: str, purpose: str) -> list[str]:
    """The words to put before a full command line so that the kernel sends it ``signal`` when we die, however we do."""
    return [tool("setpriv", purpose), "--pdeathsig", signal]


_apart: set[subprocess.Popen[bytes]] = set()
_apart_lock = threading.Lock()


def run_apart(
    argv: Sequence[str | Path],
    *,
    purpose: str,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> int:
    """Run a program that starts many others and return its exit status; umask 022, no stdin, needs root.

    It gets a process group of its own, because mmdebstrap sends its whole group a HUP when its tar breaks off, and a
    process-id namespace that ends with it: when this process ends, however it does, nothing of it goes on.
    """
    # Under nohup HUP is ignored, by children too: what mmdebstrap tells to end would go on, and it would wait for ever.
    apart = [tool("env", purpose), "--default-signal=HUP", tool("unshare", purpose), "--pid", "--fork", "--kill-child"]
    args = [*tied("KILL", purpose), *apart, tool(str(argv[0]), purpose), *(str(a) for a in argv[1:])]
    with subprocess.Popen(
        args, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, umask=0o022, process_group=0
    ) as child:
        with _apart_lock:
            _apart.add(child)
        try:
            return child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            with _apart_lock:
                _apart.discard(child)


def stop_apart() -> None:
    """End whatever run_apart is running in other threads: the command as a whole has failed or was interrupted."""
    with _apart_lock:
        for child in _apart:
            child.kill()


def failed(argv: Sequence[str | Path], purpose: str, status: int, output: bytes) -> CapsulekitError:
    """The error for a child that ended badly: its last telling line, and the command to paste."""
    text = output.decode("utf-8", "replace").strip()
    if NO_SPACE.search(text):
        return DiskFull(f"could not {purpose}: the disk is full", hint="free some space, or choose another --cache-dir")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E:", "error", "FATAL", "fatal")) or "rror:" in line]
    last = (telling or lines or ["it printed nothing"])[-1]
    command = shlex.join(str(a) for a in argv)
    return CommandFailed(
        f"could not {purpose}: {Path(str(argv[0])).name} failed with status {status}: {last}",
        hint=f"try it by hand: {command if len(command) < LONG else command[:LONG] + ' …'}",
        status=status,
        output=text,
    )
