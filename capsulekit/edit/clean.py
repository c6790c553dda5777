"""What an edit leaves that is no change of an admin's: identity files, caches, logs; by the normaliser's table.

Rows that only make two builds alike (dates, byte code) do not apply: an edit keeps its times.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from capsulekit.rootfs.table import ANY, Row, Rules

MAX_FIXED = 16 << 20  # bytes; what is fixed is read as a whole, and all of it are short configuration files
KEEP: Final = "keep"


class Cleaner:
    """Which paths of an edit are not stored as they are. ``family`` is that of the root's packages (see Rules)."""

    def __init__(self, family: str = ANY) -> None:
        self._rules = Rules(family)

    def action(self, path: str, mode: int) -> str:
        """What becomes of a path of that mode: KEEP, "remove" (with all below it), "empty" or "fix"."""
        row = self._row(path, mode)
        return row.action if row else KEEP

    def fix(self, path: str, mode: int) -> Callable[[bytes], bytes]:
        """What makes the new content of a file whose action is "empty" or "fix"."""
        row = self._row(path, mode)
        if row is None or row.fix is None:
            return lambda _: b""
        made = row.fix
        return lambda data: made(data, 0)  # no row that applies here looks at the build's time

    def _row(self, path: str, mode: int) -> Row | None:
        regular = stat.S_ISREG(mode)
        for row in self._rules.matching(path):
            if row.alike or (not regular and (row.files_only or row.action in ("empty", "fix"))):
                continue
            return row
        return None
