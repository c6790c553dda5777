"""What a command prints: plain tables for people, JSON for programs, progress on stderr at a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[str]]) -> str:
    """Fixed-width text: ``columns`` are (header, least width); a longer value widens nothing and is never cut."""
    head = " ".join(title.ljust(width) for title, width in columns).rstrip()
    body = [
        " ".join(str(value).ljust(width) for value, (_, width) in zip(row, columns, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([head, *body])


def emit_json(value: Any) -> None:
    """One JSON document on stdout, keys sorted so that two runs can be compared."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
