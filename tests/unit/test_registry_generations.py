"""A capsule's history in the registry, on both databases: appended with the switch, or neither."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from databases import PgServer

from capsulekit.errors import CapsulekitError
from provisioner.registry.backup import restore_backup, write_backup
from provisioner.registry.db import migrations, tables
from provisioner.registry.defaults import Defaults
from provisioner.registry.history import Actor
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.registry.registry import Registry

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
TINY = InstalledCapsule("tiny-1.0.amd64", "aa" * 32, "00" * 8, "RWQ", "1.0", "amd64", 5.0)
B, C = "bb" * 32, "cc" * 32


@pytest.fixture
def registry(registry_place: Path | str) -> Registry:
    made = Registry(registry_place)
    made.actor = Actor("alice", "vnfs import")
    made.install_capsule(TINY, [Past(TINY.identity, "import")])
    return made


def switch(registry: Registry, identity: str, base: str, kind: str = "edit") -> None:
    registry.switch_capsule(replace(TINY, identity=identity), Past(identity, kind, base), base=base)


def test_a_switch_is_the_row_and_its_line(registry: Registry) -> None:
    changes = {"paths": {"added": 2}, "text": "ä"}
    past = Past(B, "edit", TINY.identity, "why", changes)
    registry.switch_capsule(replace(TINY, identity=B, private=True), past, base=TINY.identity)
    assert registry.find_capsule("tiny") == replace(TINY, identity=B, private=True)
    first, last = registry.generations(TINY.name)
    assert (first.number, first.kind, first.who, first.parent, first.gone) == (1, "import", "alice", "", None)
    assert last == replace(past, number=2, who="alice", capsule=TINY.name, time=last.time) and last.time >= first.time
    assert registry.all_generations() == {TINY.name: [first, last]}


def test_a_switch_from_what_is_not_current_changes_nothing(registry: Registry) -> None:
    switch(registry, B, TINY.identity)
    before = registry.generations(TINY.name)
    with pytest.raises(CapsulekitError, match=r"tiny-1.0.amd64 was changed meanwhile by alice \(edit, .* UTC\)"):
        switch(registry, C, TINY.identity)
    assert (registry.generations(TINY.name), registry.find_capsule("tiny").identity) == (before, B)
    with pytest.raises(CapsulekitError, match="nobody was deleted meanwhile"):
        registry.switch_capsule(replace(TINY, name="nobody"), Past(B, "edit"), base=B)


def test_what_nodes_boot_and_what_they_booted_is_known(registry: Registry) -> None:
    switch(registry, B, TINY.identity)
    assert [registry.has_generation(TINY.name, one) for one in (TINY.identity, B, C)] == [True, True, False]
    assert not registry.has_generation("nobody", B)
    with registry.db.write() as con:  # installed before there was a history
        con.execute("DELETE FROM generations")
    assert [registry.has_generation(TINY.name, one) for one in (TINY.identity, B)] == [False, True]


def test_a_name_is_taken_once(registry: Registry) -> None:
    with pytest.raises(CapsulekitError, match=r"is installed as tiny-1\.0\.amd64 already"):
        registry.install_capsule(replace(TINY, identity=B), [Past(B, "import")])
    assert registry.find_capsule("tiny") == TINY and len(registry.generations(TINY.name)) == 1


def test_generations_are_forgotten_but_not_the_current_and_the_first(registry: Registry) -> None:
    switch(registry, B, TINY.identity)
    switch(registry, C, B)
    for identity, what in ((C, "what nodes boot"), (TINY.identity, "what was imported")):
        with pytest.raises(CapsulekitError, match=what):
            registry.forget_generations(TINY.name, [B, identity])
        assert all(past.gone is None for past in registry.generations(TINY.name)), "all or none"
    registry.forget_generations(TINY.name, [B])
    assert [past.gone is None for past in registry.generations(TINY.name)] == [True, False, True]
    switch(registry, B, C)
    assert [past.gone for past in registry.generations(TINY.name)] == [None] * 4, "it was made again"


def test_a_capsule_without_history_gets_it_with_its_first_change(registry: Registry) -> None:
    with registry.db.write() as con:
        con.execute("DELETE FROM generations")
    first = [Past(TINY.identity, "import", time=5.0)]
    registry.switch_capsule(replace(TINY, identity=B), Past(B, "edit", TINY.identity), base=TINY.identity, first=first)
    assert [(past.kind, past.number) for past in registry.generations(TINY.name)] == [("import", 1), ("edit", 2)]
    assert registry.generations(TINY.name)[0].time == 5.0


def test_history_goes_with_its_capsule(registry: Registry) -> None:
    registry.delete_capsules([TINY.name])
    assert registry.generations(TINY.name) == []
    registry.install_capsule(TINY, [Past(TINY.identity, "import")])
    assert [past.number for past in registry.generations(TINY.name)] == [1]


def test_what_nodes_were_told_is_known_by_node_and_by_identity(registry: Registry) -> None:
    for mac, name in ((MAC, "a"), (OTHER, "b")):
        registry.add_node(mac, name, defaults=Defaults())
        registry.record_booted(mac, json.dumps({"vnfs": TINY.name, "identity": B}))
    registry.record_booted(MAC, json.dumps({"vnfs": TINY.name, "identity": C}))
    registry.record_booted("52:54:00:00:00:99", json.dumps({"vnfs": "x", "identity": TINY.identity}))
    assert registry.handed_to(MAC) == (TINY.name, C) and registry.handed_to("52:54:00:00:00:03") is None
    assert registry.handed_out() == {(TINY.name, C): ["a"], (TINY.name, B): ["b"]}, "a node that is none holds nothing"
    assert (registry.handed_name(B), registry.handed_name("dd" * 32)) == (TINY.name, None)
    registry.record_booted(MAC, "no outline")
    assert registry.handed_to(MAC) is None


def test_a_node_that_was_livesynced_holds_both_generations(registry: Registry) -> None:
    for mac, name in ((MAC, "b"), (OTHER, "a")):
        registry.add_node(mac, name, defaults=Defaults())
        registry.record_booted(mac, json.dumps({"vnfs": TINY.name, "identity": B, "kargs": '"under":'}), now=1.0)
    assert registry.record_synced(MAC, C, told=1.0)
    assert registry.handed_out() == {(TINY.name, B): ["a", "b"], (TINY.name, C): ["b"]}
    assert registry.record_synced(MAC, B, told=1.0), "and back"
    assert registry.handed_out() == {(TINY.name, B): ["a", "b"]}
    assert registry.record_synced(MAC, C, told=1.0)
    registry.record_booted(MAC, json.dumps({"vnfs": TINY.name, "identity": TINY.identity}), now=2.0)
    assert registry.handed_out() == {(TINY.name, B): ["a"], (TINY.name, TINY.identity): ["b"]}


def test_what_a_node_asks_for_is_found_by_an_index(tmp_path: Path) -> None:
    """What a request costs does not grow with the nodes, or with what capsules were."""
    registry = Registry(tmp_path / "r.db")
    for query in ("SELECT vnfs FROM booted WHERE identity = ? LIMIT 1", "SELECT vnfs FROM booted WHERE nodeid = ?",
                  "SELECT identity FROM capsules WHERE name = ?"):  # fmt: skip
        (plan,) = registry.db.rows(f"EXPLAIN QUERY PLAN {query}", ("x",))
        assert plan["detail"].startswith("SEARCH "), plan["detail"]
    registry.close()


def test_a_registry_of_before_there_were_generations_is_brought_up_to_date(
    registry_place: Path | str,
) -> None:
    """What nodes were told to boot is taken out of the outlines; quotes in a kernel argument mislead nobody."""
    registry = Registry(registry_place)
    outline = {"identity": B, "kargs": 'a="vnfs":"no" "identity":"no"', "vnfs": TINY.name, "modules": {}}
    with registry.db.write() as con:
        for table in reversed(tables(len(migrations()))):
            con.execute(f'DROP TABLE "{table}"')
        con.execute("DELETE FROM schema_version")
        registry.db.migrate(con, 1, 4)
        for mac, plan in ((MAC, json.dumps(outline, sort_keys=True, separators=(",", ":"))), (OTHER, "plan")):
            con.execute("INSERT INTO booted (nodeid, time, plan) VALUES (?, ?, ?)", (mac, 1.0, plan))
    registry.close()
    again = Registry(registry_place)
    assert again.db.version() == len(migrations())
    assert (again.handed_to(MAC), again.handed_to(OTHER)) == ((TINY.name, B), None)
    again.close()


def test_history_moves_between_the_databases(postgres: PgServer, tmp_path: Path) -> None:
    here = Registry(tmp_path / "r.db")
    here.install_capsule(TINY, [Past(TINY.identity, "import")])
    here.switch_capsule(replace(TINY, identity=B), Past(B, "edit", TINY.identity, "m", {"a": 1}), base=TINY.identity)
    write_backup(here.db, tmp_path / "backup")
    with postgres.database() as address:
        there = Registry(address)
        restore_backup(there, tmp_path / "backup")
        assert there.generations(TINY.name) == here.generations(TINY.name)
        switch(there, C, B)
        there.close()
    here.close()
