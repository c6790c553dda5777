"""What the registry promises: unique names, all-or-nothing changes, one-time tickets, bounded history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.registry import reports
from provisioner.registry.defaults import Defaults
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.names import parse_mac, parse_name
from provisioner.registry.registry import DuplicateNode, Registry
from provisioner.registry.sql import CHUNK

PLAIN = Defaults()
MAC = "52:54:00:12:34:56"


@pytest.fixture
def registry(registry_place: Path | str) -> Iterator[Registry]:
    made = Registry(registry_place)
    yield made
    made.close()


def mac(number: int) -> str:
    return f"52:54:00:00:{number // 256:02X}:{number % 256:02X}"


def capsule(name: str, version: str = "1.0") -> InstalledCapsule:
    return InstalledCapsule(f"{name}-{version}.x86_64", "ab" * 32, "0011223344556677", "RWQ", version, "x86_64", 5.0)


@pytest.mark.parametrize(
    "text", ["52:54:00:12:34:56", "52-54-00-12-34-56", "52:54:00:ab:cd:ef", "01-52-54-00-12-34-56", " 52:54:00:1:2:3"]
)
def test_macs_are_read_in_any_spelling_and_kept_in_one(text: str) -> None:
    if text.startswith(" "):
        with pytest.raises(CapsulekitError):
            parse_mac(text)
    else:
        assert parse_mac(text) == text.removeprefix("01-").upper().replace("-", ":")


@pytest.mark.parametrize(
    "text",
    ["", "52:54:00:12:34", "52:54:00:12:34:5G", "52:54:00-12:34:56", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff",
     "01:00:5e:00:00:01", "33:33:00:00:00:01", "525400123456", "52:54:00:12:34:56:78"],
)  # fmt: skip
def test_what_is_no_machines_mac_is_refused(text: str) -> None:
    with pytest.raises(CapsulekitError):
        parse_mac(text)


@pytest.mark.parametrize(
    "text",
    ["", "-a", "a-", "a_b", "a b", "a" * 64, "a.", ".a", "a..b", "ä", "a\n", "*", "10", "127.0.0.1", "LocalHost"],
)  # fmt: skip
def test_what_is_no_host_name_is_refused(text: str) -> None:
    with pytest.raises(CapsulekitError):
        parse_name(text)


def test_names_fill_gaps_first_and_then_go_on(registry: Registry) -> None:
    for number in range(9):
        registry.add_node(mac(number), defaults=PLAIN)
    registry.add_node(mac(11), "n0011.new", defaults=PLAIN)
    added = [registry.add_node(mac(n), defaults=PLAIN).hostname for n in (20, 21, 22)]
    assert added == ["n0009", "n0010", "n0012"]


def test_a_template_gives_name_and_cluster_and_starts_where_told(registry: Registry) -> None:
    node = registry.add_node(MAC, defaults=Defaults(node_name="c##a.rack", first_node=7, group="g", enabled=False))
    assert (node.hostname, node.cluster, node.name, node.groupname, node.enabled) == (
        "c07a", "rack", "c07a.rack", "g", False,
    )  # fmt: skip
    assert registry.node(MAC) == node


def test_a_used_up_template_is_an_error_and_adds_nothing(registry: Registry) -> None:
    tiny = Defaults(node_name="n#")
    for number in range(10):
        registry.add_node(mac(number), defaults=tiny)
    with pytest.raises(CapsulekitError, match="is in use"):
        registry.add_node(mac(99), defaults=tiny)
    assert len(registry.nodes()) == 10


@pytest.mark.parametrize("template", ["node", "n##x##", "n#_#", "####.new!"])
def test_a_template_that_cannot_name_nodes_is_refused(registry: Registry, template: str) -> None:
    with pytest.raises(CapsulekitError):
        registry.add_node(MAC, defaults=Defaults(node_name=template))


def test_a_mac_and_a_name_belong_to_one_node(registry: Registry) -> None:
    registry.add_node(MAC, "login1", defaults=PLAIN)
    with pytest.raises(DuplicateNode, match="login1"):
        registry.add_node("52-54-00-12-34-56", defaults=PLAIN)
    with pytest.raises(DuplicateNode, match="LOGIN1"):
        registry.add_node(mac(2), "LOGIN1.other", defaults=PLAIN)
    with pytest.raises(CapsulekitError, match=r"(?i)unique"), registry.db.write() as con:
        con.execute("INSERT INTO nodes SELECT '" + mac(2) + "', 'Login1', cluster, groupname, vnfs, enabled, debug,"
                    ' "desc", kargs, boot, accepted, machine_id, status, status_time, ipaddr, lastcontact, error,'
                    " created, '' FROM nodes")  # fmt: skip


def test_threads_adding_at_once_get_names_of_their_own(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        nodes = list(pool.map(lambda n: registry.add_node(mac(n), defaults=PLAIN), range(64)))
    assert {n.hostname for n in nodes} == {f"n{n:04}" for n in range(64)}
    assert len({n.machine_id for n in nodes}) == 64


def test_machine_ids_are_32_hex_digits_and_stay(registry: Registry) -> None:
    node = registry.add_node(MAC, defaults=PLAIN)
    assert len(bytes.fromhex(node.machine_id)) == 16
    registry.set_nodes("hostname", "other", [MAC])
    assert registry.nodes()[0].machine_id == node.machine_id


@pytest.mark.parametrize(
    ("key", "value", "field", "stored"),
    [
        ("groupname", "rack-1.a_b", "groupname", "rack-1.a_b"),
        ("group", "g", "groupname", "g"),
        ("enabled", "0", "enabled", False),
        ("enabled", "no", "enabled", False),
        ("enabled", "Yes", "enabled", True),
        ("debug", "yes", "debug", 1),
        ("debug", "3", "debug", 3),
        ("desc", "second shelf, left: ünder", "desc", "second shelf, left: ünder"),
        ("boot", "localdisk", "boot", "localdisk"),
        ("kargs", "quiet console=ttyS0", "kargs", "quiet console=ttyS0"),
        ("vnfs", "deb-1.0.x86_64", "vnfs", "deb-1.0.x86_64"),
        ("vnfs", "deb", "vnfs", "deb-1.0.x86_64"),
        ("vnfs", "", "vnfs", ""),
        ("hostname", "new-1", "name", "new-1.new"),
        ("hostname", "new-1.sub", "name", "new-1.sub"),
    ],
)
def test_values_are_stored_as_what_they_mean(
    registry: Registry, key: str, value: str, field: str, stored: object
) -> None:
    registry.add_capsule(capsule("deb"))
    registry.add_node(MAC, defaults=PLAIN)
    assert registry.set_nodes(key, value, [MAC]) == 1
    assert getattr(registry.nodes()[0], field) == stored


@pytest.mark.parametrize(
    ("key", "value"),
    [("colour", "red"), ("nodeid", MAC), ("status", "ready"), ("enabled", "2"), ("debug", "4"), ("debug", "-1"),
     ("vnfs", "unknown"), ("vnfs", "two"), ("groupname", ""), ("groupname", "a b"), ("desc", "a\nb"),
     ("kargs", "\x1b[2J"), ("hostname", "n0001"), ("hostname", "N0001"), ("hostname", "a_b")],
)  # fmt: skip
def test_a_wrong_setting_changes_no_node(registry: Registry, key: str, value: str) -> None:
    registry.add_capsule(capsule("two", "1"))
    registry.add_capsule(capsule("two", "2"))
    for number in range(2):
        registry.add_node(mac(number), defaults=PLAIN)
    before = registry.nodes()
    with pytest.raises(CapsulekitError):
        registry.set_nodes(key, value, [mac(0)])
    assert registry.nodes() == before


def test_one_unknown_node_among_many_changes_none(registry: Registry) -> None:
    registry.add_node(MAC, defaults=PLAIN)
    for change in (
        lambda: registry.set_nodes("desc", "x", [MAC, mac(9)]),
        lambda: registry.delete_nodes([MAC, mac(9)]),
        lambda: registry.accept_nodes([MAC, mac(9)]),
    ):
        with pytest.raises(CapsulekitError, match=mac(9)):
            change()
    assert [n.desc for n in registry.nodes()] == [""]


def test_a_rehearsal_checks_everything_and_changes_nothing(registry: Registry) -> None:
    with registry.db.rehearsal():
        registry.add_node(MAC, defaults=PLAIN)
        with pytest.raises(DuplicateNode):
            registry.add_node(MAC, defaults=PLAIN)
        registry.set_nodes("desc", "x", [MAC])
        assert registry.nodes()[0].desc == "x"
    assert registry.nodes() == []
    registry.add_node(MAC, defaults=PLAIN)
    assert len(registry.nodes()) == 1


def test_a_default_capsule_is_resolved_once_it_is_there(registry: Registry) -> None:
    early = registry.add_node(mac(1), defaults=Defaults(vnfs="deb"))
    registry.add_capsule(capsule("deb"))
    late = registry.add_node(mac(2), defaults=Defaults(vnfs="deb"))
    assert (early.vnfs, late.vnfs) == ("deb", "deb-1.0.x86_64")


def test_capsules_are_kept_and_replaced_by_name(registry: Registry) -> None:
    first = capsule("deb")
    registry.add_capsule(first)
    registry.add_capsule(replace(first, identity="cd" * 32, private=True))
    assert registry.capsules() == [replace(first, identity="cd" * 32, private=True)]
    assert registry.capsule("deb") is None
    assert registry.capsule("deb-1.0.x86_64") == registry.find_capsule("deb")


def test_a_boot_is_told_from_its_last_init_on(registry: Registry) -> None:
    registry.add_node(MAC, defaults=PLAIN)
    for state, when in (("init", 1), ("failed", 2), ("init", 100), ("handoff", 121), ("ready", 139), ("ready", 199)):
        assert registry.record_state(MAC, state, "10.0.1.1", "bad disk" if state == "failed" else "", now=when)
    assert registry.boot_times(MAC) == {"init": 100.0, "handoff": 121.0, "ready": 139.0}
    registry.add_node(mac(2), defaults=PLAIN)
    registry.add_node(mac(3), defaults=PLAIN)
    registry.record_state(mac(3), "init", "", now=50)
    asked = [MAC, mac(2), mac(3)]
    both = {MAC: registry.boot_times(MAC), mac(3): {"init": 50.0}}
    # Some, and so many that all nodes are read.
    assert registry.all_boot_times(asked) == registry.all_boot_times(asked * CHUNK) == both
    node = registry.node(MAC)
    assert node is not None
    assert (node.status, node.status_time, node.lastcontact, node.ipaddr, node.error) == (
        "ready", 139.0, 199.0, "10.0.1.1", "",
    )  # fmt: skip
    assert [e.state for e in registry.events(MAC, since=100)] == ["init", "handoff", "ready"]


def test_a_node_that_starts_over_after_its_handover_did_not_come_up(registry: Registry) -> None:
    registry.add_node(MAC, defaults=PLAIN)

    def error_after(state: str, when: float, detail: str = "") -> str:
        registry.record_state(MAC, state, "10.0.1.1", detail, now=when)
        node = registry.node(MAC)
        assert node is not None and node.status == state
        return node.error

    assert [error_after("init", 1), error_after("handoff", 20)] == ["", ""]
    lost = error_after("init", 80)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(20))
    assert lost == f"handed over at {when}, but the system did not come up"
    assert registry.events(MAC)[-1].detail == lost
    assert error_after("handoff", 100) == lost, "still what an admin should know"
    assert error_after("init", 160) != lost, "the newest one counts"
    assert error_after("handoff", 170) and error_after("ready", 180) == ""
    # A reboot of a node that was ready, or had failed with a reason of its own, is no such thing.
    assert error_after("init", 300) == ""
    assert error_after("failed", 310, "no disk") == "no disk"
    assert error_after("init", 320) == ""


def test_a_failed_step_is_the_nodes_status_until_the_next_init(registry: Registry) -> None:
    registry.add_node(MAC, defaults=PLAIN)
    registry.record_state(MAC, "init", "10.0.1.1")
    registry.record_step(MAC, "fetch", "start")
    registry.record_step(MAC, "fetch", "failed", 1.5, "layer rootfs:\n digest\x1b[31m differs", 2048)
    node = registry.node(MAC)
    assert node is not None
    assert (node.status, node.error) == ("failed", "layer rootfs: digest?[31m differs")
    event = registry.events(MAC)[-1]
    assert (event.kind, event.step, event.status, event.seconds, event.mem_used_kb) == (
        "step", "fetch", "failed", 1.5, 2048,
    )  # fmt: skip
    registry.record_state(MAC, "init", "")
    node = registry.node(MAC)
    assert node is not None
    assert (node.status, node.error, node.ipaddr) == ("init", "", "10.0.1.1")


def test_reports_of_an_unknown_node_are_dropped(registry: Registry) -> None:
    assert not registry.record_state(MAC, "init", "10.0.1.1")
    assert not registry.record_step(MAC, "fetch", "ok")
    assert registry.events(MAC) == []


def test_a_nodes_history_is_bounded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST_EVENTS", 5)
    registry.add_node(MAC, defaults=PLAIN)
    registry.add_node(mac(1), defaults=PLAIN)
    registry.record_state(mac(1), "init", "")
    for number in range(12):
        registry.record_step(MAC, f"s{number}", "ok", detail="x" * 9999)
    assert [e.step for e in registry.events(MAC)] == ["s7", "s8", "s9", "s10", "s11"]
    assert max(len(e.detail) for e in registry.events(MAC)) == reports.LONGEST_DETAIL
    assert len(registry.events(mac(1))) == 1


def test_a_ticket_opens_once_for_its_mac_and_address_in_time(registry: Registry) -> None:
    for name in ("a", "b"):
        registry.add_ticket(name, MAC, "10.0.1.1", 1300.0, now=1000.0)
    assert registry.redeem_ticket("x", MAC, "10.0.1.1", 1001.0) == "unknown"
    assert registry.redeem_ticket("a", mac(1), "10.0.1.1", 1001.0) == "mac"
    assert registry.redeem_ticket("a", MAC, "10.0.1.2", 1001.0) == "address"
    assert registry.redeem_ticket("a", MAC, "10.0.1.1", 1001.0) is True
    assert registry.redeem_ticket("a", MAC, "10.0.1.1", 1002.0) == "used"
    assert registry.redeem_ticket("b", MAC, "10.0.1.1", 1300.0) == "expired"


def test_of_many_redeemers_at_once_one_wins(registry: Registry) -> None:
    registry.add_ticket("t", MAC, "10.0.1.1", 1300.0, now=1000.0)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: registry.redeem_ticket("t", MAC, "10.0.1.1", 1001.0), range(16)))
    assert sorted(map(str, got)) == ["True", *["used"] * 15]


def test_at_most_four_tickets_live_and_a_stranger_spends_his_own(registry: Registry) -> None:
    registry.add_ticket("mine", MAC, "10.0.1.1", 1300.0, now=1000.0)
    for number in range(20):
        registry.add_ticket(f"t{number}", MAC, "10.0.9.9", 1300.0, now=1001.0)
    alive = [n for n in range(20) if registry.redeem_ticket(f"t{n}", MAC, "10.0.9.9", 1002.0) is True]
    assert alive == [17, 18, 19]
    assert registry.redeem_ticket("mine", MAC, "10.0.1.1", 1002.0) is True


def test_a_new_session_ends_the_nodes_old_one(registry: Registry) -> None:
    registry.add_session("one", MAC, "10.0.1.1", 2000.0)
    assert registry.session("one", 1000.0) == MAC
    registry.add_session("two", MAC, "10.0.1.1", 2000.0)
    assert registry.session("one", 1000.0) is None
    assert registry.session("two", 2000.0) is None
    registry.drop_sessions(MAC)
    assert registry.session("two", 1000.0) is None


def test_a_deleted_node_leaves_nothing_that_opens(registry: Registry) -> None:
    registry.add_node(MAC, defaults=PLAIN)
    registry.record_state(MAC, "init", "10.0.1.1")
    registry.add_session("key", MAC, "10.0.1.1", 2000.0)
    registry.add_ticket("t", MAC, "10.0.1.1", 2000.0, now=1000.0)
    registry.delete_node(MAC)
    assert registry.session("key", 1000.0) is None
    assert registry.redeem_ticket("t", MAC, "10.0.1.1", 1001.0) == "unknown"
    assert registry.events(MAC) == []


@pytest.mark.parametrize(
    "role",
    ["", "init", "init/", "init/al", "init/all/", "init/all/x", "init/nodes/n1", "init/group/", "init/group/a b",
     "init/node/a/b", "boot/all", "/all", "init//x", "init/vnfs/../x", "INIT/all"],
)  # fmt: skip
def test_one_wrong_role_activates_nothing(registry: Registry, role: str) -> None:
    with pytest.raises(CapsulekitError, match="role"):
        registry.activate("hostname", ["init/all", role])
    assert registry.roles() == {}


def test_roles_select_nodes_by_all_group_capsule_and_name(registry: Registry) -> None:
    registry.add_capsule(capsule("d-e.b_1"))
    node = registry.add_node(MAC, "log-in.sub", defaults=Defaults(group="g.1_a-b", vnfs="d-e.b_1"))
    new = registry.activate("m1", ["init/all", "ready/node/log-in.sub"])
    assert new == ["init/all", "ready/node/log-in.sub"]
    assert registry.activate("m1", ["init/all"]) == []
    registry.activate("m2", ["init/group/g.1_a-b", "init/node/log-in"])
    registry.activate("m3", ["init/vnfs/d-e.b_1-1.0.x86_64"])
    registry.activate("m4", ["init/group/other", "init/node/login", "ready/all"])
    registry.activate("m5", ["boot/all"], states=("init", "ready", "boot"))
    assert registry.modules_for(node, "init") == ["m1", "m2", "m3"]
    assert registry.modules_for(node, "ready") == ["m1", "m4"]
    with pytest.raises(CapsulekitError, match="init/vnfs/x"):
        registry.deactivate("m4", ["ready/all", "init/vnfs/x"])
    assert registry.deactivate("m4", ["ready/all"]) == ["ready/all"]
    assert registry.deactivate("m4") == ["init/group/other", "init/node/login"]
    assert "m4" not in registry.roles()
