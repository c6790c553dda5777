"""The registry's address when it is a PostgreSQL database: postgresql://USER@HOST[:PORT]/DATABASE[?passfile=FILE].

The form is libpq's (PostgreSQL's manual, chapter libpq, "Connection URIs"). A password has no place in it: site.toml
is read by people, copied into tickets and kept in version control.
"""

from __future__ import annotations

import stat
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from capsulekit.errors import CapsulekitError

SCHEMES = ("postgresql://", "postgres://")
_SECRET = ("password", "sslpassword", "oauth_client_secret")
PASSFILE_HINT = "write HOST:PORT:DATABASE:USER:PASSWORD into a file of mode 0600 and say ?passfile=/path/of/it"


def is_address(text: str) -> bool:
    """Whether a registry setting means a database, and not a file."""
    return "://" in text


def check_address(text: str) -> None:
    """Raise CapsulekitError for an address that cannot be used, saying why without quoting a password."""
    if not text.startswith(SCHEMES):
        raise CapsulekitError(
            f"the registry {shown(text)!r} is neither a path nor a postgresql:// address",
            hint='like registry = "postgresql://capsulekit@db.example/capsulekit?passfile=/etc/capsulekit/pgpass"',
        )
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise CapsulekitError(f"the registry's address {shown(text)!r} cannot be read: {error}") from None
    if ":" in parts.netloc.rpartition("@")[0] or any(key in options for key in _SECRET):
        raise CapsulekitError(
            f"the registry's address {shown(text)} holds a password, which would be readable in site.toml",
            hint=PASSFILE_HINT,
        )
    if not text.isprintable() or parts.fragment or not parts.path.strip("/"):
        raise CapsulekitError(
            f"the registry's address {shown(text)!r} names no database", hint="postgresql://USER@HOST/DATABASE"
        )
    if "passfile" in options:
        _check_passfile(Path(options["passfile"]))


def shown(text: str) -> str:
    """An address as messages may show it: without password and options."""
    head, separator, rest = text.partition("?")[0].partition("://")
    user, at, host = rest.rpartition("@")
    return head + separator + user.partition(":")[0] + at + host


def _check_passfile(path: Path) -> None:
    """libpq goes on without a passfile that is missing or readable by others; the cause would stay unsaid."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CapsulekitError(f"passfile {path}: {error.strerror}", hint=PASSFILE_HINT) from None
    if not stat.S_ISREG(mode):
        raise CapsulekitError(f"passfile {path} is not a file", hint=PASSFILE_HINT)
    if mode & 0o077:
        raise CapsulekitError(f"passfile {path} can be read by others", hint=f"chmod 600 {path}")
