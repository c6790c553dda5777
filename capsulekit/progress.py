"""Steps of a long command: a live line on stderr at a terminal, and a record of what each step cost."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class StepTime:
    """One step: seconds it took, whether an earlier result was reused, and a short remark.

    A step that moves bytes says how many there are (``total``) and how many are ``done``.
    """

    name: str
    seconds: float = 0.0
    reused: bool = False
    note: str = ""
    total: int = 0
    done: int = 0
    shown: Callable[[], None] = field(default=lambda: None, repr=False)

    def advance(self, done: int) -> None:
        """So many bytes are done by now."""
        self.done = done
        self.shown()

    def bar(self) -> str:
        """What is shown while the step runs."""
        if not self.total or not self.done:
            return self.name
        share = min(self.done / self.total, 1)
        full = round(share * BAR)
        drawn = "#" * full + "." * (BAR - full)
        return f"{self.name} [{drawn}] {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB"


BAR = 20


@dataclass
class Progress:
    """Collects steps, which may run beside each other; shows them when ``live``."""

    live: bool = False
    steps: list[StepTime] = field(default_factory=list)
    _running: list[StepTime] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Iterator[StepTime]:
        """Time a step; the block may set ``reused`` and ``note`` on what it gets."""
        record, start = StepTime(name), time.monotonic()
        with self._lock:
            self.steps.append(record)
            self._running.append(record)
            record.shown = self._refresh
            self._show()
        try:
            yield record
        except BaseException:
            with self._lock:
                self._running.remove(record)
                self._show(f"{name}: failed after {time.monotonic() - start:.1f} s")
            raise
        record.seconds = time.monotonic() - start
        with self._lock:
            self._running.remove(record)
            self._show(f"{name}: {'unchanged' if record.reused else f'{record.seconds:.1f} s'} {record.note}".rstrip())

    def _refresh(self) -> None:
        with self._lock:
            self._show()

    def _show(self, finished: str = "") -> None:
        if not self.live:
            return
        now = " · ".join(step.bar() for step in self._running)
        sys.stderr.write("\r\x1b[K" + (finished + "\n" if finished else "") + (f"… {now}" if now else ""))
        sys.stderr.flush()

    def table(self) -> str:
        """The steps as text for stdout: name, seconds, remark."""
        rows = [
            f"  {s.name:<22} {s.seconds:7.1f} s  {'unchanged' if s.reused else ''} {s.note}".rstrip()
            for s in self.steps
        ]
        return "\n".join(rows)
