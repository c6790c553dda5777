"""The one exception tree of the project.

It lives in the lowest package because dependencies point one way (provisioner → capsulekit → initramfs_builder).
A message says what went wrong and where; the hint says the way out. The command line prints both on one line each,
between them the ``details`` where one line cannot name everything, and exits with ``exit_code`` (the table is in
docs/reference/exit-status.md).
"""

from __future__ import annotations


class CapsulekitError(Exception):
    """Something was refused or failed; exit status 1."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details


class UsageError(CapsulekitError):
    """The command line itself is wrong; exit status 2."""

    exit_code = 2


class TrustError(CapsulekitError):
    """A signature, key or digest does not hold, or a capsule is malformed; exit status 3."""

    exit_code = 3


class PartialError(CapsulekitError):
    """Tried on several, failed on some (each is named in the message); exit status 4."""

    exit_code = 4


def printable(text: str) -> str:
    """The text on one line and harmless to a terminal: names in a file from anywhere may hold any bytes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
