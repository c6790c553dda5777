"""Which applets a busybox has, read from the program: it may be for another machine, and then cannot be asked.

Their names lie one after another, each ended by NUL and sorted, because busybox looks them up by halving
(applet_names in its include/applet_tables.h). Elsewhere in the program the same words may mean something else.
"""

from __future__ import annotations

import re

WORD = re.compile(rb"(?<=\0)[a-z0-9_.\[-]{1,24}(?=\0)")


def applet_names(data: bytes) -> frozenset[str]:
    """The longest sorted row of names in a program's bytes."""
    longest: list[bytes] = []
    row: list[bytes] = []
    end = -1
    for hit in WORD.finditer(data):
        if hit.start() != end + 1 or hit[0] <= row[-1]:
            longest, row = max(longest, row, key=len), []
        row.append(hit[0])
        end = hit.end()
    return frozenset(word.decode() for word in max(longest, row, key=len))
