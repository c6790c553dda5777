"""Who changed what: every changed value leaves a line, in the same transaction, until it is too old."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.registry import history
from provisioner.registry.defaults import Defaults
from provisioner.registry.history import DAY, Actor
from provisioner.registry.registry import DuplicateNode, Registry

PLAIN = Defaults()
OLD, NEW = "52:54:00:00:00:01", "52:54:00:00:00:02"


@pytest.fixture
def registry(registry_place: Path | str) -> Iterator[Registry]:
    made = Registry(registry_place)
    made.actor = Actor("ada", "node set")
    yield made
    made.close()


def told(registry: Registry, mac: str | None = None) -> list[tuple[str, str, str, str]]:
    """What changed: (host name, key, old, new)."""
    return [(c.hostname, c.key, c.old, c.new) for c in registry.changes(mac)]


def test_each_changed_value_is_told_with_who_and_how(registry: Registry) -> None:
    before = time.time()
    registry.add_node(OLD, "login1.rack", defaults=PLAIN, accepted=False)
    registry.accept_nodes([OLD])
    registry.set_nodes("enabled", "no", [OLD])
    registry.set_nodes("debug", "2", [OLD])
    registry.set_nodes("desc", "100 % ünder?", [OLD])
    registry.set_nodes("hostname", "front.top", [OLD])
    registry.set_nodes("address", "10.0.0.7", [OLD])
    registry.delete_node(OLD)
    assert told(registry) == [
        ("login1", "added", "", "login1.rack"),
        ("login1", "accepted", "0", "1"),
        ("login1", "enabled", "1", "0"),
        ("login1", "debug", "0", "2"),
        ("login1", "desc", "", "100 % ünder?"),
        ("login1", "hostname", "login1", "front"),
        ("login1", "cluster", "rack", "top"),
        ("front", "address", "", "10.0.0.7"),
        ("front", "deleted", "front.top", ""),
    ]
    change = registry.changes()[-1]
    assert (change.who, change.command, change.nodeid) == ("ada", "node set", OLD)
    assert before <= change.time <= time.time()


def test_what_stays_as_it_is_is_no_change(registry: Registry) -> None:
    registry.add_nodes([(OLD, "a"), (NEW, "b")], defaults=PLAIN)
    registry.set_nodes("desc", "x", [OLD])
    assert registry.set_nodes("desc", "x", [OLD, NEW]) == 2
    assert told(registry)[-2:] == [("a", "desc", "", "x"), ("b", "desc", "", "x")]
    assert len(told(registry)) == 4


def test_what_fails_or_is_rehearsed_leaves_no_line(registry: Registry) -> None:
    registry.add_node(OLD, "a", defaults=PLAIN)
    before = told(registry)
    with pytest.raises(CapsulekitError):
        registry.set_nodes("desc", "x", [OLD, NEW])
    with registry.db.rehearsal():
        registry.set_nodes("desc", "x", [OLD])
        assert len(told(registry)) == len(before) + 1
    assert told(registry) == before


def test_changes_are_asked_for_by_node_time_and_number(registry: Registry) -> None:
    registry.add_nodes([(OLD, "a"), (NEW, "b")], defaults=PLAIN)
    for number in range(5):
        registry.set_nodes("desc", str(number), [OLD])
    assert [c.new for c in registry.changes(OLD, limit=2)] == ["3", "4"]
    assert told(registry, NEW) == [("b", "added", "", "b")]
    assert registry.changes(since=time.time() + 60) == []


def test_lines_too_old_go_a_few_at_a_time(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LOOKED_AT", 3)
    registry.history_days = 30
    registry.add_node(OLD, "a", defaults=PLAIN)
    for number in range(20):
        registry.set_nodes("desc", str(number), [OLD])
    with registry.db.write() as con:
        con.execute("UPDATE changes SET time = time - ? WHERE new <> '19'", (31 * DAY,))
    registry.set_nodes("debug", "1", [OLD])
    assert len(told(registry)) == 21 + 1 - 5, "one write does not pay for all"
    for number in range(4):
        registry.set_nodes("debug", str(number % 2 * 2), [OLD])
    assert [key for _, key, _, _ in told(registry)] == ["desc", "debug", "debug", "debug", "debug", "debug"]


def test_events_too_old_go_too(registry: Registry) -> None:
    registry.add_node(OLD, "a", defaults=PLAIN)
    now = time.time()
    for days in (500, 400, 366, 3):
        registry.record_state(OLD, "init", "10.0.0.9", now=now - days * DAY)
    registry.record_state(OLD, "ready", "10.0.0.9", now=now)
    assert [event.time for event in registry.events(OLD)] == pytest.approx([now - 3 * DAY, now])


def test_a_replaced_node_keeps_name_settings_and_history(registry: Registry) -> None:
    registry.attribute_names = ("rack",)
    registry.add_node(OLD, "a.sub", defaults=PLAIN)
    for key, value in (("rack", "7"), ("kargs", "quiet"), ("address", "10.0.0.7")):
        registry.set_nodes(key, value, [OLD])
    registry.record_state(OLD, "ready", "10.0.0.9")
    registry.add_session("key", OLD, "10.0.0.9", time.time() + 60)
    registry.record_lease(OLD, "10.0.0.9", "a", time.time() + 60)
    before = registry.node(OLD)
    after = registry.replace_node(OLD.lower(), NEW.replace(":", "-"))
    assert before is not None and registry.node(OLD) is None and registry.node(NEW) == after
    assert (after.name, after.kargs, after.address, after.machine_id, after.status, after.ipaddr) == (
        "a.sub", "quiet", "10.0.0.7", before.machine_id, "", "",
    )  # fmt: skip
    assert registry.attributes(NEW) == {"rack": "7"}
    assert [event.state for event in registry.events(NEW)] == ["ready"]
    assert told(registry, NEW)[0] == ("a", "added", "", "a.sub")
    assert told(registry, NEW)[-1] == ("a", "nodeid", OLD, NEW)
    assert registry.session("key", time.time()) is None and registry.leases() == []


def test_a_machine_that_joined_by_itself_gives_its_own_name_up(registry: Registry) -> None:
    registry.add_nodes([(OLD, "a"), (NEW, "b")], defaults=PLAIN)
    registry.record_state(NEW, "waiting", "10.0.0.8", "not accepted")
    after = registry.replace_node(OLD, NEW)
    assert (after.hostname, after.status, after.ipaddr) == ("a", "waiting", "10.0.0.8")
    assert registry.nodes() == [after]
    assert ("b", "deleted", "b", "") in told(registry)


def test_replacing_with_or_by_what_cannot_be_changes_nothing(registry: Registry) -> None:
    registry.add_nodes([(OLD, "a"), (NEW, "b")], defaults=PLAIN)
    before = registry.nodes(), told(registry)
    unknown = "52:54:00:00:00:09"
    for old, new in ((unknown, "52:54:00:00:00:0a"), (unknown, NEW), (OLD, OLD), (OLD, "not a mac"), (OLD, "ff" * 6)):
        with pytest.raises(CapsulekitError):
            registry.replace_node(old, new)
    assert (registry.nodes(), told(registry)) == before


def test_several_nodes_are_added_together_or_not_at_all(registry: Registry) -> None:
    added = registry.add_nodes([(OLD, None), (NEW, "n0000")], defaults=PLAIN)
    assert [node.name for node in added] == ["n0001.new", "n0000"], "a name asked for is not given to another"
    for wrong in ([("52:54:00:00:00:03", None), (OLD, None)], [("52:54:00:00:00:03", "x"), ("52:54:00:00:00:04", "X")]):
        with pytest.raises(DuplicateNode):
            registry.add_nodes(wrong, defaults=PLAIN)
    assert len(registry.nodes()) == len(told(registry)) == 2
