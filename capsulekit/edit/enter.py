"""Working inside an edited root: a command in namespaces of its own, or mounts for a chroot by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from capsulekit.edit import furnish, syscalls
from capsulekit.edit.mounts import mounts_in
from capsulekit.errors import CapsulekitError
from capsulekit.run import announce, namespaces, tied

PURPOSE = "run a command in the capsule"
ENDING = (signal.SIGTERM, signal.SIGHUP)
# Of the caller's variables only these mean the same inside.
KEPT = ("TERM", "COLORTERM", "DEBIAN_FRONTEND", "http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
INSIDE = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "SYSTEMD_OFFLINE": "1",  # systemctl changes files only, and starts nothing
}


def enter_root(root: Path, argv: Sequence[str], *, endable: bool = False) -> int:
    """See session.enter. Raises CapsulekitError when the root can't be entered at all."""
    reading, writing = os.pipe()
    words = [*tied("KILL", PURPOSE), *namespaces(PURPOSE)]
    words += [sys.executable, "-I", "-m", "capsulekit.edit.inside", str(writing), str(root), *argv]
    announce(words)
    given = {name: os.environ[name] for name in (*KEPT, *map(str.upper, KEPT)) if name in os.environ}
    with os.fdopen(reading, "rb") as said:
        try:
            with _keyboard_is_theirs():
                status = _status_of(words, {**given, **INSIDE}, writing, endable=endable)
        finally:
            os.close(writing)
        if why := said.read(4096).decode("utf-8", "replace"):
            raise CapsulekitError(why)
    return 128 - status if status < 0 else status


def _status_of(words: Sequence[str | Path], env: dict[str, str], said: int, *, endable: bool) -> int:
    """Run it. ``endable``: SIGTERM and SIGHUP end all that runs inside, and the status tells it; we live on.

    They are blocked until we can take them. `unshare` inherits that, and so waits until all inside has ended; the
    first process inside (capsulekit.edit.inside) takes them from there.
    """
    ended: list[int] = []
    endable = endable and threading.current_thread() is threading.main_thread()
    signals = [n for n in ENDING if endable and signal.getsignal(n) is signal.SIG_DFL]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with subprocess.Popen(words, env=env, pass_fds=[said]) as child:

            def end(number: int, _frame: object) -> None:
                ended.append(number)
                with suppress(OSError):  # it has ended
                    inside = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
                    for pid in inside:
                        os.kill(int(pid), number)

            for number in signals:
                signal.signal(number, end)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = child.wait()
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return -ended[0] if ended else status


@contextmanager
def _keyboard_is_theirs() -> Iterator[None]:
    """Ctrl-C and Ctrl-\\ are for the command inside; we wait for what it does about them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bind_into(root: Path, note: Callable[[tuple[str, ...]], None]) -> None:
    """Furnish ``root`` for a chroot by hand; ``note`` is told where before anything is mounted. Raises CapsulekitError.

    What is there already stays. Nothing stays mounted when it raises.
    """
    note(furnish.PLACES)
    mounted = {m.at for m in mounts_in(root)}
    there = frozenset(path for path in furnish.PLACES if root / path in mounted)
    try:
        with syscalls.folder_fd(root) as fd:
            furnish.Furnisher(fd, follow=False, there=there).furnish()
    except BaseException:
        unbind_from(root, furnish.PLACES)
        note(())
        raise


def unbind_from(root: Path, bound: Sequence[str]) -> None:
    """Unmount what ``bind_into`` has mounted, and nothing else. Raises CapsulekitError where it is in use."""
    ours = {root / path for path in bound}
    for found in [m for m in mounts_in(root) if m.at in ours]:
        try:
            syscalls.unmount(found.at)
        except OSError as wrong:
            raise CapsulekitError(f"{found.at} is in use: {wrong.strerror}", hint="end what works in it") from wrong
