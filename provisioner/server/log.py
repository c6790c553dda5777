"""The daemon's log: one line an event on stderr, ``TIME EVENT key=value …``, for people and for grep alike."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def line(event: str, **fields: object) -> str:
    """One log line without its end. A value that is not one plain word is quoted, so a line can't be forged."""
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    words = [f"{key.replace('_', '-')}={_word(value)}" for key, value in fields.items() if value is not None]
    return " ".join([time, event, *words])


def log(event: str, **fields: object) -> None:
    """Write one event. Never pass a ticket, a session key or a file's content."""
    sys.stderr.write(line(event, **fields) + "\n")
    sys.stderr.flush()


def _word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    plain = text and text.isascii() and text.isprintable() and not any(c in ' "=\\' for c in text)
    return text if plain else json.dumps(text)
