"""Globs with exceptions, as recipes give them for modules, files, firmware and microcode.

"!GLOB" takes out what the other globs found. What is named without a glob, or needed by what stays, is not taken out.
A star matches across "/".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate
from functools import cached_property

WILD = re.compile(r"[*?[]")


class Patterns:
    """A recipe's list: ``wanted`` names and globs, ``unwanted`` globs, each in the order given."""

    def __init__(self, patterns: Iterable[str]) -> None:
        given = tuple(patterns)
        self.wanted = tuple(one for one in given if not one.startswith("!"))
        self.unwanted = tuple(one.removeprefix("!") for one in given if one.startswith("!"))

    def takes(self, name: str) -> bool:
        """Whether a name is wanted, and no glob's exception (nothing is when ``wanted`` is empty)."""
        if name in self.wanted:
            return True
        return any(fnmatchcase(name, one) for one in self.wanted) and not self.leaves_out(name)

    def leaves_out(self, name: str) -> bool:
        """Whether a "!GLOB" matches the name."""
        return self._exceptions is not None and self._exceptions.match(name) is not None

    @cached_property
    def _exceptions(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(translate, self.unwanted))) if self.unwanted else None


def is_glob(name: str) -> bool:
    """Whether a name is a glob."""
    return WILD.search(name) is not None
