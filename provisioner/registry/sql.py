"""What both drivers' connections have in common: all that the registry's statements use of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

_Item = TypeVar("_Item")
# SQLite takes 32766 values in a statement since 3.32, PostgreSQL 65535.
CHUNK = 2000


class Row(Protocol):
    """A row: by name, by position, and in a row."""

    def __getitem__(self, key: str | int, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def keys(self) -> Iterable[str]:
        """The columns' names."""
        ...


class Cursor(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    @property
    def description(self) -> Any:
        """The columns of what a query gave, the name first in each."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All the rows."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A connection within a transaction. Statements are of the common subset, their values marked by ``?``."""

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Cursor:
        """Run one statement."""
        ...

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement once for each of ``values``."""
        ...


def chunks(items: Sequence[_Item]) -> Iterator[tuple[str, list[_Item]]]:
    """(marks, values) for ``IN (marks)``, as many at a time as a statement may hold; each value once."""
    unique = list(dict.fromkeys(items))
    for start in range(0, len(unique), CHUNK):
        some = unique[start : start + CHUNK]
        yield ", ".join("?" * len(some)), some
