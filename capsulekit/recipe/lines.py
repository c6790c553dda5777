"""Where the keys of a TOML text stand: tomllib keeps no positions, and an error has to name the line."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from contextlib import suppress

# The way to a value: names of tables and keys, and numbers of items.
Keys = tuple[str | int, ...]

_STRING = re.compile(
    r'"""(?:[^"\\]+|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']+|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]+|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BLANK = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_OTHER = re.compile(r"[^,\]}#\n]*")


def positions(text: str) -> dict[Keys, int]:
    """Line, from 1, of every table, key and item of a valid TOML text."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    # A place that was not found costs the line in a message, nothing else.
    with suppress(_Lost, IndexError, RecursionError, ValueError):
        scanner.document()
    return scanner.found


class _Lost(Exception):
    """The text is not what the scanner takes it for."""


class _Scanner:
    """Walks over a text that tomllib has accepted, so it checks nothing but where things begin and end."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: dict[Keys, int] = {}
        self.ends = [m.start() for m in re.finditer("\n", text)]
        self.counts: dict[Keys, int] = {}

    def document(self) -> None:
        inside: Keys = ()
        while self.skip(_BETWEEN) < len(self.text):
            if self.text[self.at] != "[":
                self.pair(inside)
                continue
            start, array = self.at, self.text.startswith("[[", self.at)
            self.at += 1 + array
            inside = self.header(self.keys(), array)
            self.at += 1 + array
            for length in range(1, len(inside)):
                self.note(inside[:length], start)
            self.found.pop(inside, None)  # so far it was only part of another header
            self.note(inside, start)

    def header(self, names: Keys, array: bool) -> Keys:
        """The way to a header's table: below an array of tables it leads through the last of them."""
        inside: Keys = ()
        for name in names[:-1]:
            inside = (*inside, name)
            inside = (*inside, self.counts[inside]) if inside in self.counts else inside
        inside = (*inside, names[-1])
        if not array:
            return inside
        self.counts[inside] = self.counts.get(inside, -1) + 1
        return (*inside, self.counts[inside])

    def pair(self, inside: Keys) -> None:
        start = self.at
        keys = self.keys()
        self.at += 1  # =
        for length in range(1, len(keys) + 1):
            self.note((*inside, *keys[:length]), start)
        self.value((*inside, *keys))

    def keys(self) -> Keys:
        names: list[str] = []
        while True:
            self.skip(_BLANK)
            if self.text[self.at] in "\"'":
                names.append(tomllib.loads("k = " + self.take(_STRING))["k"])
            else:
                names.append(self.take(_BARE))
            self.skip(_BLANK)
            if self.text[self.at] != ".":
                return tuple(names)
            self.at += 1

    def value(self, keys: Keys) -> None:
        self.skip(_BLANK)
        first = self.text[self.at]
        if first in "\"'":
            self.take(_STRING)
        elif first in "[{":
            self.at += 1
            number = 0
            while self.text[self.skip(_BETWEEN)] not in "]}":
                if first == "[":
                    self.note((*keys, number), self.at)
                    self.value((*keys, number))
                else:
                    self.pair(keys)
                number += 1
                if self.text[self.skip(_BETWEEN)] == ",":
                    self.at += 1
            self.at += 1
        else:
            self.take(_OTHER)

    def skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        assert found is not None  # these match nothing, too
        self.at = found.end()
        return self.at

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise _Lost
        self.at = found.end()
        return found[0]

    def note(self, keys: Keys, start: int) -> None:
        self.found.setdefault(keys, bisect_right(self.ends, start - 1) + 1)
