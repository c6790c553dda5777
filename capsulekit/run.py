"""The one door for child processes: argument lists only, never a shell; a failure says what the program was for."""

from __future__ import annotations

import os
import pwd
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError

# Which Debian package brings a program, for the way out of "not installed".
PACKAGE_OF = {
    "apt-get": "apt",
    "depmod": "kmod",
    "dnf": "dnf",
    "dnsmasq": "dnsmasq-base",
    "dpkg-deb": "dpkg",
    "env": "coreutils",
    "gpg": "gpg",
    "grub-mkimage": "grub-common",
    "ip": "iproute2",
    "losetup": "mount",
    "mcopy": "mtools",
    "mformat": "mtools",
    "minisign": "minisign",
    "mmd": "mtools",
    "newuidmap": "uidmap",
    "rm": "coreutils",
    "rpmkeys": "rpm",
    "rsync": "rsync",
    "setpriv": "util-linux",
    "shellcheck": "shellcheck",
    "ssh": "openssh-client",
    "unshare": "util-linux",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "qemu-system-i386": "qemu-system-x86",
    "qemu-system-x86_64": "qemu-system-x86",
    "sqfstar": "squashfs-tools",
    "tar": "tar",
    "unsquashfs": "squashfs-tools",
    "xorriso": "xorriso",
}

# Inside its namespaces a program meets the same host name everywhere (see run_apart).
APART = Path(__file__).parent / "namespace" / "apart.sh"
PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# The clock that `capsulekit prove` has moved, for programs whose environment is made anew too (perturb.sh).
CLOCK = {name: os.environ[name] for name in ("DATEFUDGE",) if name in os.environ}

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
    env = None if env is None else {**env, **CLOCK}
    source = subprocess.PIPE if isinstance(stdin, bytes) else stdin or subprocess.DEVNULL
    announce(_surrounded(argv, cwd, env))
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


class Interrupted(CapsulekitError):
    """A child process was ended because the command as a whole ends."""


def run_bounded(
    argv: Sequence[str | Path],
    out: IO[bytes],
    *,
    purpose: str,
    most: int,
    timeout: float,
    stdin: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Run a program whose words come from another machine: what it prints goes into ``out``, ``most`` bytes at most.

    Of its errors the end is kept, however many there are. ``timeout`` is in seconds. Raises ToolMissing, CommandFailed,
    Interrupted once ``stop`` is set, or CapsulekitError when it took too long or printed too much.
    """
    args = [*tied("KILL", purpose), tool(str(argv[0]), purpose), *(str(a) for a in argv[1:])]
    announce(_surrounded(argv, None, env))
    pipe = subprocess.PIPE
    with subprocess.Popen(args, env=env, stdin=stdin or subprocess.DEVNULL, stdout=pipe, stderr=pipe) as child:
        try:
            end = time.monotonic() + timeout
            said = _pour(child, out, most, end, stop)
            child.wait(max(end - time.monotonic(), 0))
        except TimeoutError as wrong:
            child.kill()
            raise CapsulekitError(f"{argv[0]} did not finish within {timeout:g} s (to {purpose})") from wrong
        except subprocess.TimeoutExpired as late:
            child.kill()
            raise CapsulekitError(f"{argv[0]} did not finish within {timeout:g} s (to {purpose})") from late
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise failed(argv, purpose, child.returncode, said)


ERRORS_KEPT = 16 << 10  # bytes


def _pour(child: subprocess.Popen[bytes], out: IO[bytes], most: int, end: float, stop: threading.Event | None) -> bytes:
    """Read both of a child's outputs to their end; what it said on the second, the last of it."""
    assert child.stdout is not None and child.stderr is not None
    errors, got = b"", 0
    with selectors.DefaultSelector() as ready:
        for pipe in (child.stdout, child.stderr):
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map():
            if stop is not None and stop.is_set():
                raise Interrupted("interrupted")
            if time.monotonic() > end:
                raise TimeoutError
            for key, _ in ready.select(0.25):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    ready.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    errors = (errors + piece)[-ERRORS_KEPT:]
                else:
                    got += len(piece)
                    if got > most:
                        raise CapsulekitError(f"it sent more than {most} bytes")
                    out.write(piece)
    return errors


# Set by `--verbose`: every command is shown as a line to paste.
show_commands = False


def announce(argv: Sequence[str | Path]) -> None:
    """Show a command that is about to run, where `--verbose` asked for it."""
    if show_commands:
        sys.stderr.write("+ " + shlex.join(str(a) for a in argv) + "\n")


def _surrounded(argv: Sequence[str | Path], cwd: Path | None, env: Mapping[str, str] | None) -> list[str | Path]:
    """A command line that brings its folder and its environment with it."""
    folder = [] if cwd is None else [f"--chdir={cwd}"]
    variables = [] if env is None else ["-i", *(f"{name}={value}" for name, value in env.items())]
    return ["env", *folder, *variables, *argv] if folder or variables else [*argv]


def tied(signal: str, purpose: str) -> list[str]:
    """The words to put before a full command line so that the kernel sends it ``signal`` when we die, however we do."""
    return [tool("setpriv", purpose), "--pdeathsig", signal]


def as_root_by_name(purpose: str) -> list[str]:
    """The words to put before a command that must take itself for root (of nothing), whoever runs it."""
    return [] if os.geteuid() == 0 else [tool("unshare", purpose), "--user", "--map-root-user"]


_apart: set[subprocess.Popen[bytes]] = set()
_apart_lock = threading.Lock()


def run_apart(
    argv: Sequence[str | Path],
    *,
    purpose: str,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes] | None,
    stderr: IO[bytes] | None,
    terminal: bool = False,
    memory: int | None = None,
) -> int:
    """Run a program as root of namespaces of its own and return its exit status; umask 022, no network.

    Its mounts, processes, host name and network are its own and end with it: when this process ends, however it does,
    nothing of it goes on. An ordinary user gets a user namespace with all their subordinate ids (see ``_namespaces``).
    It gets a process group of its own too, because mmdebstrap sends its whole group a HUP when its tar breaks off;
    with ``terminal`` it keeps ours, and our stdin, so that a person can talk to it. ``memory`` makes a folder ``mem``
    in ``cwd``, in memory up to so many bytes; 0 leaves it on the disk (capsulekit.memory).
    """
    # Under nohup HUP is ignored, by children too: what mmdebstrap tells to end would go on, and it would wait for ever.
    namespaces = _namespaces(purpose)
    apart = [tool("env", purpose), "--default-signal=HUP", *namespaces, "/bin/sh", str(APART)]
    # Where nothing can be mounted, the scripts that enter a root do without (see namespace/inside.lib.sh).
    env = {**env, **CLOCK} if namespaces else {**env, "CAPSULEKIT_NO_MOUNTS": "yes"}
    if memory is not None:
        env["CAPSULEKIT_MEMORY"] = str(memory)
    args = [*tied("KILL", purpose), *apart, tool(str(argv[0]), purpose), *(str(a) for a in argv[1:])]
    # Pasted without its namespaces it would mount on the machine itself.
    announce(_surrounded([*apart, *argv], cwd, env))
    with subprocess.Popen(
        args,
        cwd=cwd,
        env=env,
        stdin=None if terminal else subprocess.DEVNULL,
        stdout=stdout or subprocess.DEVNULL,
        stderr=stderr,
        umask=0o022,
        process_group=None if terminal else 0,
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


def remove_apart(folder: Path) -> None:
    """Remove a folder whose files belong to an ordinary user's subordinate ids; what resists is left."""
    with suppress(CapsulekitError):
        run_apart(removing(folder), purpose="clean up", env=PLAIN, cwd=folder.parent, stdout=None, stderr=None)


def removing(*folders: Path) -> list[str | Path]:
    """The command that removes folders with all that is in them, but for what is mounted there."""
    return ["rm", "-rf", "--one-file-system", "--", *folders]


def namespaces(purpose: str) -> list[str | Path]:
    """The start of root's command line that runs a program in namespaces of its own; the network stays ours."""
    return [tool("unshare", purpose), "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]


@cache
def _namespaces(purpose: str) -> tuple[str, ...]:
    """The start of a command line that becomes root of its own namespaces; raises CapsulekitError when it may not.

    Four cases: root; root of an unprivileged container, whose mounts reach no further than its own namespace (the same
    for us); an ordinary user, who needs a range in /etc/subuid and /etc/subgid (subuid(5)) and newuidmap; root of a
    container without CAP_SYS_ADMIN, who can change root but not mount: nothing is put before the command then, and the
    container is what ends with it.
    """
    apart = [*map(str, namespaces(purpose)), "--net"]
    if os.geteuid() != 0:
        tool("newuidmap", purpose)
        apart[1:1] = ["--user", "--map-root-user", "--map-auto"]
    tried = subprocess.run([*apart, "true"], capture_output=True, check=False, env={**PLAIN, "LC_ALL": "C"})
    if tried.returncode == 0:
        return tuple(apart)
    said = (tried.stderr.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
    if os.geteuid() == 0 and _may_chroot():
        return ()
    if os.geteuid() == 0:
        hint = "a container needs CAP_SYS_CHROOT at least"
    elif "no line matching" in said or "map" in said:
        me = pwd.getpwuid(os.geteuid()).pw_name if _known_user() else str(os.geteuid())
        hint = f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {me}"
    else:
        hint = "allow user namespaces (sysctl user.max_user_namespaces), or run the same command with sudo"
    raise CapsulekitError(f"cannot {purpose} as uid {os.geteuid()}: no namespaces: {said}", hint=hint)


def _may_chroot() -> bool:
    """Whether CAP_SYS_CHROOT is among our capabilities (capabilities(7): number 18)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> 18 & 1)


def _known_user() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True


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
