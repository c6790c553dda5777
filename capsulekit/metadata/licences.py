"""Licences of Debian packages, out of the copyright files in the root as it streams by.

Read are machine-readable ones only (Debian's copyright-format 1.0, "DEP-5"); of another nothing is claimed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

COPYRIGHT = re.compile(r"usr/share/doc/([a-z0-9][a-z0-9+.-]*)/copyright")
MAX_SIZE = 1 << 20  # bytes; the longest in Debian 12 has half of it
_FORMAT = re.compile(rb"\s*Format(-Specification)?:.*(copyright-format|dep5|DEP5)", re.IGNORECASE)
_FIELD = re.compile(r"([A-Za-z-]+):\s*(.*)")
_WORDS = re.compile(r"(\band/or\b|\band\b|\bor\b|,|\||\(|\))", re.IGNORECASE)
_VERSIONED = re.compile(r"(A?GPL|LGPL|GFDL|LPPL|MPL|Apache|Artistic|CC-BY(?:-SA)?)-v?([0-9.]+?)(?:\.0)?(\+?)")
# Debian's short names (copyright-format, "Short name") that SPDX spells otherwise, in small letters.
_SPDX = {
    "expat": "MIT", "mit": "MIT", "x11": "X11", "isc": "ISC", "zlib": "Zlib", "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause", "bsd-4-clause": "BSD-4-Clause", "cc0-1.0": "CC0-1.0", "cc0": "CC0-1.0",
    "perl": "Artistic-1.0-Perl OR GPL-1.0-or-later", "artistic": "Artistic-1.0-Perl", "python": "Python-2.0",
    "curl": "curl", "openssl": "OpenSSL", "unicode": "Unicode-DFS-2016", "0bsd": "0BSD", "bsl-1.0": "BSL-1.0",
    "vim": "Vim", "ofl-1.1": "OFL-1.1", "psf-2": "PSF-2.0", "fsfap": "FSFAP", "fsful": "FSFUL", "fsfullr": "FSFULLR",
}  # fmt: skip
# SPDX writes "-only" or "-or-later" behind the GNU licences and nothing behind the others.
_GNU = ("GPL", "AGPL", "LGPL", "GFDL")


class Licences:
    """Collects what the copyright files say: show every file that is wanted, then ask for the result."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def wants(self, path: str) -> bool:
        """Whether the content of this path (relative to the root) is asked for."""
        return COPYRIGHT.fullmatch(path) is not None

    def see(self, path: str, data: bytes) -> None:
        """Read one wanted file's content."""
        found = COPYRIGHT.fullmatch(path)
        if found and len(data) <= MAX_SIZE and (text := expression(data)):
            self._found[found[1]] = text

    def result(self) -> dict[str, str]:
        """Package name -> SPDX licence expression, sorted by name."""
        return dict(sorted(self._found.items()))


def expression(data: bytes) -> str:
    """All licences of a copyright file as one SPDX expression: what the package's files are under, joined by AND.

    A name that SPDX does not list becomes a LicenseRef. Empty when the file is not machine-readable.
    """
    if not _FORMAT.match(data):
        return ""
    named: set[str] = set()
    for text in map(_converted, _names(data.decode("utf-8", "replace"))):
        named |= set(text.split(" AND ")) if " OR " not in text else {text}
    named.discard("")
    if len(named) == 1:
        return named.pop()
    return " AND ".join(f"({text})" if " OR " in text else text for text in sorted(named))


def _names(text: str) -> Iterator[str]:
    """The short names in the header and in each stanza about files; a stanza with a licence's text alone is none."""
    for number, stanza in enumerate(re.split(r"\n[ \t]*(?:\n[ \t]*)+", text)):
        fields = {m[1].lower(): m[2].strip() for line in stanza.splitlines() if (m := _FIELD.match(line))}
        if (number == 0 or "files" in fields) and fields.get("license"):
            yield fields["license"]


def _converted(text: str) -> str:
    """One licence field as an SPDX expression; "" for one that cannot be read."""
    words = []
    for part in _WORDS.split(text):
        word = part.strip().rstrip(".;")
        if not word:
            continue
        small = word.lower()
        if small in ("and", ","):
            words.append("AND")
        elif small in ("or", "and/or", "|"):
            words.append("OR")
        else:
            words.append(word if word in ("(", ")") else _spdx(word))
    # "GPL-2, or MIT": the comma only sets the next word's rank.
    joined = re.sub(r"\bAND (AND|OR)\b", r"\1", " ".join(words)).replace("( ", "(").replace(" )", ")")
    return "" if re.search(r"\b(AND|OR) (AND|OR)\b|(^|\() ?(AND|OR)\b|\b(AND|OR) ?(\)|$)", joined) else joined


def _spdx(name: str) -> str:
    """One short name; "with NAME exception" becomes WITH only where SPDX knows it, so it is kept in a LicenseRef."""
    if name.lower() in _SPDX:
        found = _SPDX[name.lower()]
        return f"({found})" if " OR " in found else found
    versioned = _VERSIONED.fullmatch(name)
    if not versioned:
        return "LicenseRef-" + (re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "unnamed")
    family, number, later = versioned.groups()
    number = number if "." in number else f"{number}.0"
    if family in _GNU:
        return f"{family}-{number}{'-or-later' if later else '-only'}"
    return f"{family}-{number}"
