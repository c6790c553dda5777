"""The first process of an edited root's namespaces: ``python -m capsulekit.edit.inside FD ROOT COMMAND…``.

It furnishes the root, starts the command in it, takes in what is orphaned, and ends with the command's status; all
other processes then end with it. What goes wrong before is written to the descriptor FD.
"""

from __future__ import annotations

import os
import signal
import sys

from capsulekit.edit.furnish import Furnisher
from capsulekit.errors import CapsulekitError

ENDING = {signal.SIGTERM, signal.SIGHUP}
NOT_RUNNABLE, NOT_FOUND, NOT_STARTED = 126, 127, 125


def main(words: list[str]) -> int:
    """Returns the command's exit status, 128 and the signal's number when a signal ended it."""
    said, root, argv = int(words[0]), words[1], words[2:]
    os.set_inheritable(said, False)
    try:
        os.umask(0o022)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        Furnisher(fd, follow=True).furnish()
    except (CapsulekitError, OSError) as wrong:
        os.write(said, str(wrong).encode()[:4000])
        return NOT_STARTED
    for number in ENDING & signal.pthread_sigmask(signal.SIG_BLOCK, ()):  # else they are the command's alone
        signal.signal(number, lambda got, _: os._exit(128 + got))  # and all else in here ends with us
    child = os.fork()
    if child == 0:
        _become(fd, argv)
    os.close(said)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    return _wait_for(child)


def _become(root: int, argv: list[str]) -> None:
    """Be the command in the root; never returns."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    status = NOT_FOUND
    for number in ENDING & signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    try:
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
        os.execvp(argv[0], argv)  # noqa: S606 (that is what this program is for)
    except FileNotFoundError:
        sys.stderr.write(f"there is no {argv[0]} in the capsule\n")
    except OSError as wrong:
        status = NOT_RUNNABLE
        sys.stderr.write(f"{argv[0]} in the capsule can't be run: {wrong.strerror}\n")
    os._exit(status)


def _wait_for(child: int) -> int:
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
