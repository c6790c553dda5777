"""Work of many requests done as one: lots that grow with the load, and nobody who pays for another's failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry
from provisioner.server.gather import MOST, Gather, Writes

MACS = [f"52:54:00:00:00:{number:02X}" for number in range(50)]


@pytest.fixture
def registry(registry_place: Path | str) -> Iterator[Registry]:
    made = Registry(registry_place)
    made.add_nodes([(mac, None) for mac in MACS], defaults=Defaults())
    yield made
    made.close()


class Slow:
    """Doubles numbers; the first lot is held until it is let go. Odd numbers from 100 on are refused."""

    def __init__(self) -> None:
        self.lots: list[int] = []
        self.go = threading.Event()

    def work(self, asked: Sequence[int]) -> list[int | Exception]:
        self.lots.append(len(asked))
        if len(self.lots) == 1:
            assert self.go.wait(10)
        return [ValueError(str(n)) if n > 100 and n % 2 else 2 * n for n in asked]


async def begun(slow: Slow) -> None:
    while not slow.lots:
        await asyncio.sleep(0.001)


async def test_what_is_asked_meanwhile_is_the_next_lot_and_each_gets_its_own_answer() -> None:
    slow = Slow()
    gather: Gather[int, int] = Gather(slow.work)
    first = asyncio.create_task(gather.ask(7))
    await begun(slow)
    others = [asyncio.create_task(gather.ask(n)) for n in range(MOST + 10)]
    await asyncio.sleep(0)
    slow.go.set()
    assert await first == 14, "a lone request waits for nobody"
    answers = await asyncio.gather(*others, return_exceptions=True)
    refused = {n for n, answer in enumerate(answers) if isinstance(answer, ValueError) and str(answer) == str(n)}
    assert refused == {n for n in range(MOST + 10) if n > 100 and n % 2}
    assert all(answer == 2 * n for n, answer in enumerate(answers) if n not in refused)
    assert slow.lots == [1, MOST, 10]


async def test_an_exception_is_raised_to_the_one_it_is_for() -> None:
    slow = Slow()
    slow.go.set()
    gather: Gather[int, int] = Gather(slow.work)
    good, bad, more = await asyncio.gather(gather.ask(4), gather.ask(101), gather.ask(6), return_exceptions=True)
    assert (good, str(bad), more) == (8, "101", 12)


async def test_a_lot_that_fails_as_a_whole_fails_for_all_of_it_and_the_next_goes_on() -> None:
    calls = 0

    def work(asked: Sequence[int]) -> list[int | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise CapsulekitError("the disk is full")
        return list(asked)

    gather: Gather[int, int] = Gather(work)
    failed = await asyncio.gather(gather.ask(1), gather.ask(2), return_exceptions=True)
    assert [str(error) for error in failed] == ["the disk is full"] * 2
    assert await gather.ask(3) == 3


async def test_who_gives_up_waiting_takes_nobody_along() -> None:
    slow = Slow()
    gather: Gather[int, int] = Gather(slow.work)
    first, second = asyncio.create_task(gather.ask(1)), asyncio.create_task(gather.ask(2))
    await begun(slow)
    first.cancel()
    slow.go.set()
    assert await asyncio.wait_for(second, 10) == 4
    assert await asyncio.wait_for(gather.ask(3), 10) == 6


async def test_changes_of_many_hold_when_they_are_answered(registry: Registry, registry_place: Path | str) -> None:
    writes, other = Writes(registry.db), Registry(registry_place)

    async def report(mac: str) -> None:
        assert await writes.do(registry.record_state, mac, "ready", "10.0.0.9")
        node = other.node(mac)  # another connection sees what is committed only
        assert node is not None and node.status == "ready"

    await asyncio.gather(*(report(mac) for mac in MACS))
    other.close()
    assert all(len(registry.events(mac)) == 1 for mac in MACS)


async def test_one_change_that_fails_is_undone_alone(registry: Registry) -> None:
    writes = Writes(registry.db)

    def half(mac: str) -> None:
        registry.record_state(mac, "ready", "10.0.0.9")
        raise CapsulekitError("half way")

    changes = [writes.do(half if n == 20 else registry.record_state, mac, *(("ready", "10.0.0.9") if n != 20 else ()))
               for n, mac in enumerate(MACS)]  # fmt: skip
    done = await asyncio.gather(*changes, return_exceptions=True)
    assert [n for n, one in enumerate(done) if one is not True] == [20]
    assert str(done[20]) == "half way"
    ready = {node.nodeid for node in registry.nodes() if node.status == "ready"}
    assert ready == set(MACS) - {MACS[20]}


async def test_when_the_database_gives_up_nobody_is_told_that_it_is_done(registry: Registry) -> None:
    writes = Writes(registry.db)

    def lost(_mac: str) -> None:
        registry.db.session().execute("ROLLBACK")  # as SQLite does when the disk is full
        raise CapsulekitError("database or disk is full")

    changes = [asyncio.create_task(writes.do(registry.record_state, mac, "ready", "")) for mac in MACS[:10]]
    changes.append(asyncio.create_task(writes.do(lost, MACS[10])))
    done = await asyncio.gather(*changes, return_exceptions=True)
    ready = {node.nodeid for node in registry.nodes() if node.status == "ready"}
    told = {mac for mac, one in zip(MACS, done, strict=False) if one is True}
    assert told == ready
    assert [str(one) for one in done] == ["database or disk is full"] * 11
    assert await writes.do(registry.record_state, MACS[0], "ready", ""), "the next one works"
