"""What the registry keeps beside nodes: fixed addresses, the site's attributes, groups' settings, leases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.registry.defaults import Defaults
from provisioner.registry.leases import Lease
from provisioner.registry.registry import DuplicateNode, Registry

PLAIN = Defaults()
A, B = "52:54:00:00:00:01", "52:54:00:00:00:02"


@pytest.fixture
def registry(registry_place: Path | str) -> Iterator[Registry]:
    made = Registry(registry_place)
    made.attribute_names = ("rack", "bmc")
    made.add_nodes([(A, "a"), (B, "b")], defaults=PLAIN)
    yield made
    made.close()


def test_a_fixed_address_is_one_nodes(registry: Registry) -> None:
    registry.set_nodes("address", "10.0.1.7", [A])
    with pytest.raises(DuplicateNode, match="of node 'a'"):
        registry.set_nodes("address", "10.0.1.7", [B])
    with pytest.raises(CapsulekitError, match="one node only"):
        registry.set_nodes("address", "10.0.1.8", [A, B])
    assert [node.address for node in registry.nodes()] == ["10.0.1.7", ""]
    registry.set_nodes("address", "10.0.1.7", [A])
    registry.set_nodes("address", "FD00:1:0::7", [B])
    assert [node.address for node in registry.nodes()] == ["10.0.1.7", "fd00:1::7"]
    registry.set_nodes("address", "", [A, B])
    assert [node.address for node in registry.nodes()] == ["", ""]


def test_several_nodes_get_a_value_each_in_one_change_or_none(registry: Registry) -> None:
    registry.set_each("address", {A: "10.0.1.7", B: "FD00:1:0::7"})
    registry.set_each("hostname", {A: "c", B: "d.west"})
    registry.set_each("rack", {A: "1", B: "2"})
    assert [(n.name, n.address) for n in registry.nodes()] == [("c", "10.0.1.7"), ("d.west", "fd00:1::7")]
    assert registry.all_attributes() == {A: {"rack": "1"}, B: {"rack": "2"}}
    said = [(c.nodeid, c.key, c.old, c.new) for c in registry.changes() if c.key != "added"]
    assert said == [
        (A, "address", "", "10.0.1.7"), (B, "address", "", "fd00:1::7"), (A, "hostname", "a", "c"),
        (B, "hostname", "b", "d"), (B, "cluster", "", "west"), (A, "rack", "", "1"), (B, "rack", "", "2"),
    ]  # fmt: skip
    before = registry.nodes(), len(registry.changes())
    for key, values, why in (
        ("address", {A: "10.0.1.9", B: "10.0.1.9"}, "two nodes"),
        ("address", {A: "10.0.1.9", B: "10.0.1.7"}, "of node 'c'"),
        ("hostname", {A: "e", B: "C"}, "there is a node 'C'"),
        ("desc", {A: "x", "52:54:00:00:00:09": "y"}, "no node has"),
        ("colour", {A: "red"}, "unknown"),
        ("debug", {A: "1", B: "9"}, "debug cannot be"),
    ):
        with pytest.raises(CapsulekitError, match=why):
            registry.set_each(key, values)
        assert (registry.nodes(), len(registry.changes())) == before
    registry.set_each("desc", {A: "", B: ""})
    assert len(registry.changes()) == before[1], "what stays as it was is no change"


@pytest.mark.parametrize(
    "text",
    ["10.0.1", "10.0.1.256", "10.0.1.7/16", "localhost", "224.0.0.1", "127.0.0.1", "0.0.0.0", "::1", "ff02::1",
     "fe80::1%eth0", "10.0.1.7 x", "255.255.255.255"],
)  # fmt: skip
def test_what_is_no_machines_address_is_refused(registry: Registry, text: str) -> None:
    with pytest.raises(CapsulekitError):
        registry.set_nodes("address", text, [A])
    assert registry.nodes()[0].address == ""


def test_the_sites_attributes_are_set_shown_in_order_and_cleared(registry: Registry) -> None:
    registry.set_nodes("bmc", "10.9.0.1", [A])
    registry.set_nodes("rack", "7", [A, B])
    assert list(registry.attributes(A).items()) == [("rack", "7"), ("bmc", "10.9.0.1")]
    assert registry.all_attributes() == {A: {"rack": "7", "bmc": "10.9.0.1"}, B: {"rack": "7"}}
    registry.set_nodes("rack", "", [A])
    assert registry.attributes(A) == {"bmc": "10.9.0.1"}
    assert [(c.hostname, c.old, c.new) for c in registry.changes() if c.key == "rack"] == [
        ("a", "", "7"), ("b", "", "7"), ("a", "7", ""),
    ]  # fmt: skip
    registry.delete_node(A)
    assert registry.all_attributes() == {B: {"rack": "7"}}


@pytest.mark.parametrize(("key", "value"), [("shelf", "1"), ("rack", "a\nb"), ("rack", "x" * 1501)])
def test_a_wrong_attribute_is_refused(registry: Registry, key: str, value: str) -> None:
    with pytest.raises(CapsulekitError):
        registry.set_nodes(key, value, [A])
    with pytest.raises(CapsulekitError, match="52:54:00:00:00:09"):
        registry.set_nodes("rack", "1", [A, "52:54:00:00:00:09"])
    assert registry.attributes(A) == {}


def test_what_is_set_for_a_group_is_its_own_and_told(registry: Registry) -> None:
    assert registry.group_kargs("login") == ""
    registry.set_group_kargs("login", " quiet console=ttyS0 ")
    registry.set_group_desc("login", "front ends")
    registry.set_group_kargs("login", "quiet")
    assert (registry.group_kargs("login"), registry.group_desc("login")) == ("quiet", "front ends")
    assert registry.group_settings() == {"login": ("quiet", "front ends")}
    lines = [(c.hostname, c.key, c.old, c.new) for c in registry.changes() if c.hostname.startswith("@")]
    assert lines[0] == ("@login", "kargs", "", "quiet console=ttyS0")
    assert lines[-1] == ("@login", "kargs", "quiet console=ttyS0", "quiet")
    registry.set_group_kargs("login", "")
    registry.set_group_desc("login", "")
    assert registry.group_settings() == {}
    for name, value in (("a b", "x"), ("login", "a\nb")):
        with pytest.raises(CapsulekitError):
            registry.set_group_kargs(name, value)


def test_a_forgotten_group_leaves_only_its_history(registry: Registry) -> None:
    registry.set_group_kargs("old", "quiet")
    registry.forget_group("old")
    registry.forget_group("never")
    assert registry.group_kargs("old") == ""
    assert [c.new for c in registry.changes() if c.hostname == "@old"] == ["quiet", ""]


def test_an_address_is_leased_to_one_machine_at_a_time(registry: Registry) -> None:
    registry.record_lease(A, "10.0.1.1", "a", 500.0, now=100.0)
    registry.record_lease(A, "fd00::1", "a", 500.0, now=101.0)
    registry.record_lease(B, "10.0.1.1", "b", 600.0, now=200.0)
    assert not registry.drop_lease(A, "10.0.1.1"), "it is b's now"
    assert registry.leases() == [
        Lease(B, "10.0.1.1", "b", 600.0, 200.0), Lease(A, "fd00::1", "a", 500.0, 101.0),
    ]  # fmt: skip
    assert registry.drop_lease(B, "10.0.1.1")
    registry.delete_node(A)
    assert registry.leases() == []


def test_ten_thousand_nodes_are_set_and_deleted_in_one_go(registry: Registry) -> None:
    macs = [f"52:54:01:00:{number >> 8:02X}:{number & 255:02X}" for number in range(10_000)]
    registry.add_nodes([(mac, None) for mac in macs], defaults=Defaults(node_name="m#####"))
    assert registry.set_nodes("desc", "x", macs) == registry.set_nodes("rack", "7", macs) == 10_000
    assert sum(node.desc == "x" for node in registry.each_node()) == 10_000
    assert len(registry.changes(limit=10**6)) == 30_002
    with pytest.raises(CapsulekitError, match="52:54:00:00:00:09"):
        registry.delete_nodes([*macs, "52:54:00:00:00:09"])
    assert registry.delete_nodes(macs) == 10_000
    assert [node.hostname for node in registry.nodes()] == ["a", "b"]
