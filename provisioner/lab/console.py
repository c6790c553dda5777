"""A node's serial console: read all the time (so that a guest never blocks on it), kept, logged, searched."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from pathlib import Path

from capsulekit.errors import CapsulekitError


class ConsoleTimeout(CapsulekitError):
    """What was waited for did not show up; the message ends with the console's last lines."""


def _connect(path: Path) -> socket.socket:
    """QEMU's socket is in the file system a moment before it listens."""
    deadline = time.monotonic() + 10
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(str(path))
        except ConnectionRefusedError:
            made.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except OSError:
            made.close()
            raise
        else:
            return made


class Console:
    """Talks to the Unix socket of QEMU's serial port; every byte also goes to ``log``.

    ``expect`` moves on through the output like pexpect: what was matched once is not matched again.
    """

    def __init__(self, path: Path, log: Path) -> None:
        self._socket = _connect(path)
        self._log = log
        self._text = ""
        self._at = 0
        self._open = True
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"console {log.stem}", daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """Everything the console has shown so far."""
        with self._news:
            return self._text

    def expect(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Wait until ``pattern`` (a regular expression) shows up after the last match; ``timeout`` in seconds.

        Raises ConsoleTimeout, at once when the guest is gone.
        """
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                if found := wanted.search(self._text, self._at):
                    self._at = found.end()
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or not self._open:
                    why = f"not shown within {timeout:.0f} s" if self._open else "not shown before the console closed"
                    tail = "\n".join(self._text.splitlines()[-20:])
                    raise ConsoleTimeout(f"{pattern!r} {why}; last lines:\n{tail}", hint=f"all of it: {self._log}")
                self._news.wait(left)

    def sendline(self, line: str) -> None:
        """Type a line."""
        self._socket.sendall(line.encode() + b"\r")

    def close(self) -> None:
        """Stop listening."""
        # shutdown wakes the reader up; close alone would not.
        with contextlib.suppress(OSError):  # the guest may have gone first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=5)
        self._socket.close()

    def _read(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while data := self._receive():
                log.write(data)
                with self._news:
                    self._text += data.decode("utf-8", "replace")
                    self._news.notify_all()
        with self._news:
            self._open = False
            self._news.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except OSError:
            return b""
