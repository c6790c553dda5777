"""A folder as a tar stream, by GNU tar: names sorted, with all a layer can hold; no link in it is ever followed."""

from __future__ import annotations

import fcntl
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError
from capsulekit.run import announce, failed, tied, tool

PURPOSE = "read the folder"
CHUNK = 1 << 20
OPTIONS = (
    "--format=posix",
    "--sort=name",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--one-file-system",
    "--blocking-factor=128",  # 64 KiB at once: tar's own 10 KiB make eight times as many system calls
    "--quoting-style=escape",
)
CHANGED = re.compile(r"file changed as we read it|File removed before we read it|File shrank by|changed size")
# A squashfs without a table of attributes has none to lose; the call's name depends on the kind of path.
NO_TABLE = re.compile(r": Warning: Cannot [fl]*listxattr(at)?: Operation not supported$")
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@contextmanager
def tar_of(
    root: Path,
    names: Sequence[str],
    log: Path,
    *,
    alone: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    changing: bool = False,
) -> Iterator[IO[bytes]]:
    """The tar of ``names`` (paths below ``root``, "." for all of it) with what they hold, as a stream to read.

    ``alone`` are folders that come first without what they hold; ``leave_out`` are patterns (``*`` also matches ``/``,
    see ``literal``) of what is not read. What is mounted in a folder is not followed. ``log`` is a file to use.
    At the end of the block CapsulekitError is raised when something could not be read, or changed meanwhile (unless
    ``changing``).
    """
    argv: list[str | Path] = [tool("tar", PURPOSE), *OPTIONS, "-C", root, "--anchored", "--wildcards"]
    argv += ["--wildcards-match-slash", *(f"--exclude=./{pattern}" for pattern in leave_out), "-cf", "-"]
    argv += ["--no-recursion", *(f"./{name}" for name in alone), "--recursion"]
    argv += [name if name == "." else f"./{name}" for name in names]
    announce(argv)
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [*tied("KILL", PURPOSE), *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=ENV
        )
        assert child.stdout is not None
        with suppress(OSError):  # a limit of ordinary users
            fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, CHUNK)
        try:
            yield child.stdout
            while child.stdout.read(CHUNK):  # the reader stops at the end mark, before the last block's padding
                pass
            child.stdout.close()
            status = child.wait()
        except BaseException as error:
            child.stdout.close()
            # With nobody reading tar ends by SIGPIPE. One that failed by itself before knows better what was wrong.
            if child.wait() > 0 and isinstance(error, CapsulekitError):
                _check(argv, 2, log.read_bytes(), changing)
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    _check(argv, status, log.read_bytes(), changing)


def literal(path: str) -> str:
    """A path as a pattern that matches just it."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", path)


def _check(argv: list[str | Path], status: int, printed: bytes, changing: bool) -> None:
    """Raise what tar could not do; nothing it says is passed over but what the caller knows of."""
    lines = [re.sub(r"^\S*tar: ", "", line) for line in printed.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if not line.endswith("file is on a different filesystem; not dumped")]
    lines = [line for line in lines if not NO_TABLE.search(line)]
    if changing:
        lines = [line for line in lines if not CHANGED.search(line)]
        status = 0 if status == 1 else status
    told = [line for line in lines if not line.startswith("Exiting with failure status")]
    if status == 0 and not told:
        return
    first = told[0] if told else "it printed nothing"
    if CHANGED.search(first):
        raise CapsulekitError(f"the tree changed while it was read: {first}", hint="stop what writes into it")
    if "Permission denied" in first:
        raise CapsulekitError(f"could not {PURPOSE}: {first}", hint="run the same command as root")
    raise failed(argv, PURPOSE, status, "\n".join(told).encode())
