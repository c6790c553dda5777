"""What the registry keeps of the nodes' devices: each list once, replaced whole, gone with the last node of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_sysfs as fake
import pytest

from provisioner.devices import Device
from provisioner.registry import db as database
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry

PLAIN = Defaults()
TABLES = ("device_kinds", "hardware", "devices", "node_hardware")
NIC = Device(fake.E1000, "e1000", "e1000", boot=True)
DISK = Device(fake.AHCI, "ahci", "ahci")
BARE = Device(fake.MLX5)


def mac(number: int) -> str:
    return f"52:54:00:00:{number // 256:02X}:{number % 256:02X}"


@pytest.fixture
def registry(registry_place: Path | str) -> Iterator[Registry]:
    made = Registry(registry_place)
    for number in range(3):
        made.add_node(mac(number), defaults=PLAIN)
    yield made
    made.close()


def sizes(registry: Registry) -> list[int]:
    """How many rows each of the tables has."""
    return [registry.db.rows(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES]


def of(registry: Registry, number: int) -> tuple[Device, ...]:
    """What a node is made of."""
    return registry.devices_of(registry.node_hardware()[mac(number)][0])


def test_a_list_is_kept_with_the_time_it_came(registry: Registry) -> None:
    assert registry.record_devices(mac(0), (NIC, DISK), now=100.0)
    assert of(registry, 0) == (NIC, DISK)
    assert registry.node_hardware()[mac(0)][1] == 100.0
    assert registry.never_reported() == ["n0001", "n0002"]


def test_a_new_list_replaces_the_old_one_whole(registry: Registry) -> None:
    registry.record_devices(mac(0), (NIC, DISK))
    registry.record_devices(mac(0), (NIC, BARE), now=7.0)
    assert set(of(registry, 0)) == {NIC, BARE}
    assert sizes(registry) == [2, 1, 2, 1]


def test_the_same_devices_of_many_nodes_are_kept_once(registry: Registry) -> None:
    for number in range(3):
        registry.record_devices(mac(number), (NIC, DISK))
    assert sizes(registry) == [2, 1, 2, 3]
    registry.record_devices(mac(1), (NIC,))
    assert [h.nodes for h in registry.hardware()] == [("n0000", "n0002"), ("n0001",)]
    assert [h.devices for h in registry.hardware()] == [(NIC, DISK), (NIC,)]
    assert sizes(registry) == [2, 2, 3, 3]


def test_nothing_is_left_of_a_deleted_node(registry: Registry) -> None:
    registry.record_devices(mac(0), (NIC, DISK))
    registry.record_devices(mac(1), (NIC, DISK))
    registry.delete_node(mac(0))
    assert sizes(registry) == [2, 1, 2, 1]
    registry.delete_nodes([mac(1), mac(2)])
    assert sizes(registry) == [0, 0, 0, 0]


def test_a_node_nobody_knows_leaves_nothing(registry: Registry) -> None:
    assert not registry.record_devices("52:54:00:99:99:99", (NIC,))
    assert sizes(registry) == [0, 0, 0, 0]


def test_a_report_that_fails_half_way_leaves_the_old_list(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.record_devices(mac(0), (NIC, DISK), now=1.0)
    before = sizes(registry)
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr("provisioner.registry.devices._drop_unused", lambda *_: 1 // 0)
        registry.record_devices(mac(0), (BARE,))
    with registry.db.rehearsal():
        registry.record_devices(mac(0), (BARE,))
    assert (sizes(registry), of(registry, 0)) == (before, (NIC, DISK))


def test_what_drove_a_kind_of_device_anywhere_is_known(registry: Registry) -> None:
    registry.record_devices(mac(0), (Device(fake.MLX5), Device(fake.AHCI, "ahci")))
    registry.record_devices(mac(1), (Device(fake.MLX5, "mlx5_core", "mlx5_core"),))
    registry.record_devices(mac(2), (Device(fake.XHCI, "xhci_hcd", "xhci_pci"),))
    assert registry.known_modules() == {fake.MLX5: {"mlx5_core"}, fake.XHCI: {"xhci_pci"}}
    assert registry.known_drivers() == {
        fake.MLX5: {"mlx5_core"},
        fake.AHCI: {"ahci"},
        fake.XHCI: {"xhci_hcd", "xhci_pci"},
    }
    assert registry.modaliases() == sorted({fake.MLX5, fake.AHCI, fake.XHCI})


def test_a_walk_over_the_fleet_sees_one_moment(registry: Registry, registry_place: Path | str) -> None:
    for number, device in enumerate((NIC, DISK, BARE)):
        registry.record_devices(mac(number), (device,))
    walk = registry.hardware()
    first = next(walk)
    other = Registry(registry_place)
    other.delete_nodes([mac(1), mac(2)])
    other.close()
    assert [first.nodes, *(h.nodes for h in walk)] == [("n0000",), ("n0001",), ("n0002",)]
    assert [h.nodes for h in registry.hardware()] == [("n0000",)]


def test_many_reports_at_once_lose_none_and_leave_nothing_behind(registry: Registry) -> None:
    lists = [(NIC,), (NIC, DISK), (DISK, BARE), (NIC, DISK, BARE)]

    def report(turn: int) -> bool:
        return registry.record_devices(mac(turn % 3), lists[turn % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(report, range(120)))
    for number in range(3):
        assert tuple(sorted(of(registry, number))) in {tuple(sorted(devices)) for devices in lists}
    used = {devices for number in range(3) for devices in of(registry, number)}
    assert sizes(registry)[0] == len({(d.modalias, d.driver, d.module) for d in used})
    assert sizes(registry)[1] == len({of(registry, number) for number in range(3)})


def test_a_registry_of_the_first_version_keeps_its_nodes_and_takes_devices(
    registry_place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_first = tmp_path / "migrations"
    only_first.mkdir()
    first = next(database.MIGRATIONS.glob("0001_*.sql"))
    (only_first / first.name).write_text(first.read_text())
    with monkeypatch.context() as before:
        before.setattr(database, "MIGRATIONS", only_first)
        old = Registry(registry_place)
        with old.db.write() as con:  # as the first version added a node
            con.execute(
                "INSERT INTO nodes VALUES (?, 'n0000', '', '', '', 1, 0, '', '', '', 1, ?, '', NULL, '', NULL, '', 1)",
                (mac(0), "0a" * 16),
            )
        assert old.db.version() == 1
        old.close()
    registry = Registry(registry_place)
    assert [node.hostname for node in registry.nodes()] == ["n0000"]
    assert registry.never_reported() == ["n0000"]
    assert registry.record_devices(mac(0), (NIC,))
    assert of(registry, 0) == (NIC,)
    registry.delete_node(mac(0))
    assert sizes(registry) == [0, 0, 0, 0]


def test_ten_thousand_nodes_are_read_one_kind_at_a_time(registry: Registry) -> None:
    kinds = [(NIC, DISK), (NIC, BARE), (NIC, DISK, BARE), (BARE,)]
    macs = [mac(number) for number in range(3, 10_003)]
    registry.add_nodes([(address, None) for address in macs], defaults=Defaults(node_name="m#####"))
    for address, kind in zip(macs, kinds, strict=False):
        assert registry.record_devices(address, kind)
    # The others' at once, as ten thousand transactions would take a minute of a busy disk.
    numbers = [registry.node_hardware()[address][0] for address in macs[:4]]
    with registry.db.write() as con:
        rows = [(address, numbers[turn % 4], 1.0) for turn, address in enumerate(macs)][4:]
        con.executemany("INSERT INTO node_hardware (nodeid, hardware, reported) VALUES (?, ?, ?)", rows)
    assert sizes(registry) == [3, 4, 8, 10_000]
    assert sorted(len(h.nodes) for h in registry.hardware()) == [2500] * 4
