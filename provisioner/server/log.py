"""The daemon's log: one line an event on stderr, ``TIME EVENT key=value …``, for people and for grep alike."""

from __future__ import annotations

import json
import re
import sys
import time
from functools import lru_cache

_PLAIN = re.compile(r"""[!#-<>-\[\]-~]+""")  # printable ASCII without blank, quote, equals sign and backslash


def line(event: str, **fields: object) -> str:
    """One log line without its end. A value that is not one plain word is quoted, so a line can't be forged."""
    now = time.time()
    words = [f"{key.replace('_', '-')}={_word(value)}" for key, value in fields.items() if value is not None]
    return " ".join([f"{_second(int(now))}.{int(now % 1 * 1000):03d}Z", event, *words])


def log(event: str, **fields: object) -> None:
    """Write one event. Never pass a ticket, a session key or a file's content."""
    sys.stderr.write(line(event, **fields) + "\n")
    sys.stderr.flush()


def _word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


@lru_cache(1)
def _second(epoch: int) -> str:
    """A second of UTC; the hundreds of lines of one second are told it once."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch))
