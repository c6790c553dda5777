"""Work of many requests done as one: a mass boot, or all agents at once, cost a query and a commit for many of them.

Nothing waits for company: what is asked while one lot is being worked on makes up the next one. So a lone request is as
quick as ever, and lots grow with the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Generic, TypeVar

from provisioner.registry.db import Database

MOST = 256  # one lot; others write to the registry between two of them
_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class Gather(Generic[_Asked, _Answer]):
    """Hands what was asked to ``work``, a list at a time and in a thread of its own; one lot is under way at a time.

    ``work`` gives one answer for each, in their order; an answer that is an exception is raised to who asked. When
    ``work`` itself raises, it is raised to all of the lot.
    """

    def __init__(self, work: Callable[[Sequence[_Asked]], Sequence[_Answer | Exception]]) -> None:
        self._work = work
        self._waiting: deque[tuple[_Asked, asyncio.Future[_Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, asked: _Asked) -> _Answer:
        """The answer, once its lot is done."""
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                lot = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                answers: Sequence[_Answer | Exception]
                try:
                    answers = await asyncio.to_thread(self._work, [asked for asked, _ in lot])
                except Exception as error:
                    # One for each: an exception gathers the traces of all who raise it.
                    answers = [copy(error) for _ in lot]
                for (_, future), answer in zip(lot, answers, strict=True):
                    if future.done():
                        continue  # whoever asked has been cancelled
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._task = None


class Writes:
    """Changes of the registry, many in one transaction; each is answered when all of it is on the disk."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._gather: Gather[Callable[[], Any], Any] = Gather(self._commit)

    async def do(self, change: Callable[..., _Answer], *values: object) -> _Answer:
        """Call ``change``, which writes to the registry and does nothing that takes long; returns what it returns.

        What it raises is raised here, and undone alone: the others of its lot hold.
        """
        done: _Answer = await self._gather.ask(lambda: change(*values))
        return done

    def _commit(self, changes: Sequence[Callable[[], Any]]) -> list[Any]:
        if len(changes) == 1:
            return [changes[0]()]
        with self._db.write():
            return [self._one(change) for change in changes]

    def _one(self, change: Callable[[], Any]) -> Any:
        try:
            with self._db.write():  # within the other: a savepoint
                return change()
        except Exception as error:
            if not self._db.session().in_transaction:
                raise  # the database gave up the whole
            return error
