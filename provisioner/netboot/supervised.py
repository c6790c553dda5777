"""A process that `serve` keeps running: started, restarted with growing pauses when it dies, stopped for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError

STOP_SECONDS = 5.0
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before the n-th restart in a row
STEADY_SECONDS = 60.0  # one that lived this long starts the row anew


@dataclass
class Supervised(ABC):
    """One program's process. ``log`` is called with an event's name and its fields, ``does`` is its word there."""

    log: Callable[..., None]
    program: str
    does: str
    restarts: int = 0
    died: float = 0.0  # when it last ended by itself, epoch seconds; 0 is never
    last_words: str = ""  # what it said then
    start_seconds: float = 15.0
    _process: asyncio.subprocess.Process | None = None
    _keeper: asyncio.Task[None] | None = None
    _said: list[str] = field(default_factory=list)

    @abstractmethod
    def argv(self) -> Sequence[str | Path]:
        """The full command line, so tied to us that the kernel ends it when we die."""

    @abstractmethod
    async def serves(self) -> bool:
        """Whether it answers its clients now."""

    def hint(self, why: str) -> str | None:  # noqa: ARG002
        """The way out when it does not start and says ``why``."""
        return None

    def hear(self, text: str) -> None:
        """A line that it said; the last ones are kept."""
        self._said = [*self._said[-9:], text]

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def started(self) -> bool:
        """Whether it is to run: it was started, and not stopped since."""
        return self._keeper is not None

    async def start(self) -> None:
        """Start and return once it serves. Raises CapsulekitError with its own reason when it does not."""
        await self._spawn()
        end = time.monotonic() + self.start_seconds
        while not await self.serves():
            if self.pid is None:
                await asyncio.sleep(0.1)  # its last words may still be in the pipe
                why = self._last_words()
                raise CapsulekitError(f"{self.program} does not start: {why}", hint=self.hint(why))
            if time.monotonic() > end:
                await self._end()
                raise CapsulekitError(f"{self.program} ({self.does}) did not come up within {self.start_seconds:.0f} s")
            await asyncio.sleep(0.05)
        self._keeper = asyncio.create_task(self._keep())

    async def again(self) -> None:
        """End it and start it with its main file as that is now. Raises CapsulekitError when it then does not start."""
        await self.stop()
        await self.start()

    async def revive(self) -> None:
        """Start it after a failure; where that fails too it is tried again like one that died."""
        try:
            await self.start()
        except CapsulekitError:
            self._keeper = asyncio.create_task(self._keep())

    def reload(self) -> None:
        """Have it read again what it reads at a HUP."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGHUP)

    async def stop(self) -> None:
        """End it and wait until it is gone."""
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end()

    def status(self) -> dict[str, Any]:
        """What ``serve status`` prints of it."""
        return {
            "pid": self.pid, "restarts": self.restarts, "died": self.died, "last_words": self.last_words,
        }  # fmt: skip

    async def _spawn(self) -> None:
        # Not by run(): that waits for the end.
        self._process = await asyncio.create_subprocess_exec(
            *self.argv(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is for us, we then stop it in order
        )
        self._reader = asyncio.create_task(self._listen(self._process))

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        while line := await process.stderr.readline():
            text = line.decode("utf-8", "replace").strip()
            if text:
                self.hear(text)

    async def _keep(self) -> None:
        """Restart it whenever it dies."""
        in_a_row, born = 0, time.monotonic()
        while True:
            assert self._process
            status = await self._process.wait()
            in_a_row = 0 if time.monotonic() - born > STEADY_SECONDS else in_a_row
            pause = BACKOFF[min(in_a_row, len(BACKOFF) - 1)]
            self.died, self.last_words = time.time(), self._last_words()
            self.log(
                f"{self.program}-died", status=status, does=self.does, reason=self.last_words, restart_in=pause
            )  # fmt: skip
            await asyncio.sleep(pause)
            in_a_row, born = in_a_row + 1, time.monotonic()
            try:
                await self._spawn()
            except (CapsulekitError, OSError) as error:
                self.log("error", message=f"{self.program} can't be restarted: {error}")
                continue
            self.restarts += 1
            self.log(f"{self.program}-restarted", pid=self.pid, does=self.does, restarts=self.restarts)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._reader

    def _last_words(self) -> str:
        return self._said[-1].removeprefix(f"{self.program}: ") if self._said else "it printed nothing"
