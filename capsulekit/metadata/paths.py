"""Paths as text: what is no UTF-8 or cannot be printed is percent-escaped, and so is the percent sign."""

from __future__ import annotations

import posixpath
from urllib.parse import quote_from_bytes, unquote_to_bytes


def escape(path: str) -> str:
    """A path (bytes that are no UTF-8 as surrogates) as printable text; ``unescape`` gives it back."""
    return "".join(c if c.isprintable() and c != "%" else quote_from_bytes(_bytes(c), safe="") for c in path)


def unescape(text: str) -> str:
    """The path that ``escape`` was given."""
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def plain(path: str) -> str:
    """A path as layers spell it: relative to the root, no ``.``, ``..`` or doubled ``/``; the root itself is ""."""
    return posixpath.normpath("/" + path).strip("/")
