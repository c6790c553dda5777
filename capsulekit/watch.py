"""How much of a download has arrived, told while another program does it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds between two looks.
LOOK = 0.2


@contextmanager
def arriving(folder: Path, done: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, tell ``done`` now and then how many bytes lie below ``folder``; once more at its end."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            done(_bytes_below(folder))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    done(_bytes_below(folder))


def _bytes_below(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(base, name).lstat().st_size
    return total
