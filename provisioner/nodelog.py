"""A node's story: its boots with their states, steps and errors, and between them who changed what about it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from provisioner.registry.history import Change
from provisioner.registry.model import Event


@dataclass
class Boot:
    """One boot, from its "init" on, and the changes made until the next. ``start`` is epoch seconds."""

    start: float | None  # None: what is kept begins in the middle of a boot
    events: list[Event] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """The last state it reported."""
        return next((event.state for event in reversed(self.events) if event.kind == "state"), "")

    def lines(self) -> list[str]:
        """For people: a heading, then one line an event or change, in the order of their times."""
        found = [(event.time, _event(event, self.start)) for event in self.events if event.status != "start"]
        found += [(event.time, _event(event, self.start)) for event in self._unfinished()]
        found += [(change.time, _change(change)) for change in self.changes]
        return [f"  {when(then)} {text}" for then, text in sorted(found, key=lambda pair: pair[0])]

    def _unfinished(self) -> list[Event]:
        """The starts of steps of which no end was reported."""
        ended = {event.step for event in self.events if event.status in ("ok", "failed")}
        return [event for event in self.events if event.status == "start" and event.step not in ended]

    def record(self) -> dict[str, Any]:
        """The same for --json."""
        return {
            "start": self.start,
            "outcome": self.outcome,
            "events": [asdict(event) for event in self.events],
            "changes": [asdict(change) for change in self.changes],
        }


def boots_of(events: Sequence[Event], changes: Sequence[Change]) -> list[Boot]:
    """The boots, oldest first. Changes from before the first of them are in one of their own, without a start."""
    boots: list[Boot] = []
    for event in events:
        if not boots or (event.kind == "state" and event.state == "init"):
            boots.append(Boot(event.time if event.state == "init" else None))
        boots[-1].events.append(event)
    for change in changes:
        before = [boot for boot in boots if boot.events and boot.events[0].time <= change.time]
        if not before and (not boots or boots[0].events):
            boots.insert(0, Boot(None))
        (before[-1] if before else boots[0]).changes.append(change)
    return boots


def story(hostname: str, boots: Sequence[Boot]) -> list[str]:
    """The lines of `node console-log`; one saying so where nothing is known."""
    text: list[str] = []
    for boot in boots:
        head = f"boot of {when(boot.start)}" if boot.start is not None else "before the first boot that is kept"
        text += [f"{hostname}: {head}" + (f", {boot.outcome}" if boot.outcome else ""), *boot.lines()]
    return text or [f"{hostname}: nothing was reported yet"]


def when(epoch: float) -> str:
    """Local time to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def _event(event: Event, start: float | None) -> str:
    if event.kind == "step":
        took = f" in {event.seconds:.1f} s" if event.seconds is not None else ""
        text = f"step {event.step} {'not finished' if event.status == 'start' else event.status}{took}"
    else:
        since = f" +{event.time - start:.0f} s" if start is not None and event.state != "init" else ""
        text = f"state {event.state}{since}"
    memory = f" ({event.mem_used_kb / 1024:.0f} MiB used)" if event.mem_used_kb is not None else ""
    return text + memory + (f": {event.detail}" if event.detail else "")


def _change(change: Change) -> str:
    by = f" by {change.who}" if change.who else ""
    command = f" ({change.command})" if change.command else ""
    return f"change {change.key}: {change.old!r} → {change.new!r}{by}{command}"
