"""Stage 1 and the devices: what it lists and sends, and what it says about network devices that no driver takes."""

from __future__ import annotations

import os
from pathlib import Path

import fake_sysfs as fake
import pytest
from fake_sysfs import Sysfs
from node_shell import MAC, Node, node

from provisioner.devices import Device, class_of, parse_devices

__all__ = ["node"]  # the fixture
OTHER_MAC = "52:54:00:12:34:99"
DISK = "0000:00:05.0"


@pytest.fixture
def sysfs(node: Node, tmp_path: Path) -> Sysfs:
    made = Sysfs(tmp_path / "sys")
    node.env |= {"CK_SYS": str(made.root), "CK_NET": str(made.root / "class/net")}
    (node.site / "masters").write_text("http://a https://a\n")
    (node.run / "master").write_text("http://a https://a\n")
    (node.run / "session.curl").write_text("")
    node.env["CK_MODPROBE"] = str(program(node, "modprobe", "exit 1"))
    return made


def program(node: Node, name: str, script: str) -> Path:
    """A program found before the real one; busybox's shell finds its own first."""
    folder = node.run.parent / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    if not node.env["PATH"].startswith(str(folder)):
        node.env["PATH"] = f"{folder}:{node.env['PATH']}"
    return folder / name


def listed(node: Node, mac: str = MAC) -> tuple[Device, ...]:
    """What stage 1 lists, as the master reads it."""
    return parse_devices(node.out('devices_text "$1"', mac).encode())


def detail(node: Node) -> str:
    return (node.run / "detail").read_text().strip()


# --- the list


def test_every_device_is_listed_with_its_driver_and_module(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:00.0", fake.BRIDGE)
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    sysfs.device("pci0000:00/0000:00:04.0", fake.AHCI, "ahci", "ahci", builtin=True)
    sysfs.device("pci0000:00/0000:00:06.0", fake.XHCI, "xhci_hcd")
    assert set(listed(node)) == {
        Device(fake.BRIDGE),
        Device(fake.E1000, "e1000", "e1000"),
        Device(fake.AHCI, "ahci"),
        Device(fake.XHCI, "xhci_hcd"),
    }


def test_the_boot_interface_and_all_on_the_way_to_it_are_marked(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:02.0", fake.BRIDGE, "pcieport")
    sysfs.device("pci0000:00/0000:00:02.0/0000:01:00.0", fake.VIRTIO_PCI, "virtio-pci", "virtio_pci")
    mine = sysfs.device("pci0000:00/0000:00:02.0/0000:01:00.0/virtio0", fake.VIRTIO_NET, "virtio_net", "virtio_net")
    # Another of the same kind, whose folder's name begins with that of one on the way.
    sysfs.device("pci0000:00/0000:00:02.0/0000:01:00.01", fake.VIRTIO_PCI, "virtio-pci", "virtio_pci")
    other = sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    sysfs.nic("eth0", OTHER_MAC, other)
    sysfs.nic("eth1", MAC, mine)
    found = listed(node)
    assert {d.modalias for d in found if d.boot} == {fake.BRIDGE, fake.VIRTIO_PCI, fake.VIRTIO_NET}
    assert Device(fake.VIRTIO_PCI, "virtio-pci", "virtio_pci") in found
    assert {d.modalias for d in listed(node, OTHER_MAC) if d.boot} == {fake.E1000}
    assert not [d for d in listed(node, "52:54:00:00:00:00") if d.boot]


def test_equal_devices_are_counted_and_the_order_is_always_the_same(node: Node, sysfs: Sysfs) -> None:
    for number in (9, 1, 4):
        sysfs.device(f"pci0000:00/0000:00:0{number}.0", fake.E1000, "e1000", "e1000")
    sysfs.device("pci0000:00/0000:00:05.0", fake.E1000)
    text = node.out('devices_text "$1"', MAC)
    assert text.splitlines() == [f"{fake.E1000} -", f"{fake.E1000} e1000 module=e1000 count=3"]
    assert node.out('devices_text "$1" >"$RUN/d"; devices_number "$RUN/d"', MAC).strip() == "4"


def test_processors_and_what_can_name_no_module_are_left_out(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("system/cpu/cpu0", "cpu:type:x86,ven0000fam0006mod0055:feature:,0000,0001")
    sysfs.device("platform/mdio", "platform:Fixed MDIO bus")
    sysfs.device("platform/empty", "")
    sysfs.device("platform/odd", "no colon")
    sysfs.device("platform/bytes", "acpi:\x7f\x01")
    sysfs.device("platform/good", "acpi:PNP0501:")
    assert listed(node) == (Device("acpi:PNP0501:"),)


def test_a_modalias_is_never_read_as_shell(node: Node, sysfs: Sysfs) -> None:
    odd = "acpi:$(touch${IFS}pwned)`id`*;?[a]\\n%s:"
    sysfs.device("platform/a b/odd", odd)
    assert listed(node) == (Device(odd),)


def test_odd_driver_names_become_plain_words(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("platform/phy", "mdio:1", "Generic PHY", "of mdio")
    assert listed(node) == (Device("mdio:1", "Generic_PHY", "of_mdio"),)


# --- sending


CURL = """
printf '%s\\n' "$@" >"{log}"
while [ $# -gt 0 ]; do
    case $1 in -o) printf '{answer}\\n' >"$2" ;; --data-binary) cp "${{2#@}}" "{log}.body" ;; esac
    shift
done
printf {code}
exit {status}
"""


def answer(node: Node, code: int = 200, text: str = "ok", status: int = 0) -> Path:
    """The master's answer from now on; the file that shows what it was asked."""
    log = node.run.parent / "asked"
    log.unlink(missing_ok=True)
    program(node, "curl", CURL.format(log=log, answer=text, code=code, status=status))
    return log


def test_the_list_is_sent_once_and_again_when_it_changed(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    log = answer(node)
    node.out('send_devices "$1"', MAC)
    assert detail(node) == "1 devices"
    assert "https://a/v1/devices" in log.read_text().splitlines()
    assert parse_devices(log.with_name("asked.body").read_bytes()) == (Device(fake.E1000, "e1000", "e1000"),)
    log.unlink()
    node.out('send_devices "$1"', MAC)
    assert (detail(node), log.exists()) == ("as sent before", False)
    sysfs.device("pci0000:00/0000:00:04.0", fake.AHCI)
    node.out('send_devices "$1"', MAC)
    assert (detail(node), log.exists()) == ("2 devices", True)


def test_in_a_new_session_the_list_is_sent_again(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    answer(node)
    node.out('send_devices "$1"', MAC)
    later = (node.run / "devices").stat().st_mtime + 1
    os.utime(node.run / "session.curl", (later, later))
    log = answer(node)
    node.out('send_devices "$1"', MAC)
    assert (detail(node), log.exists()) == ("1 devices", True)


@pytest.mark.parametrize(
    ("code", "text", "status", "said"),
    [
        (503, "try later", 0, "not sent: the master answered 503: try later"),
        (413, "", 0, "not sent: the master answered 413:"),
        (0, "", 28, "not sent: the master did not take them"),
    ],
)
def test_a_master_that_fails_stops_no_boot_and_is_asked_again_next_time(
    node: Node, sysfs: Sysfs, code: int, text: str, status: int, said: str
) -> None:
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    answer(node, code, text, status)
    node.out('step devices send_devices "$1"', MAC)
    assert said in (node.run.parent / "console").read_text()
    log = answer(node)
    node.out('send_devices "$1"', MAC)
    assert log.exists()


def test_without_a_master_that_answered_nothing_is_sent(node: Node, sysfs: Sysfs) -> None:
    (node.run / "master").unlink()
    log = answer(node)
    node.out('send_devices "$1"', MAC)
    assert (detail(node), log.exists()) == ("not sent: no master has answered yet", False)


def test_an_endless_answer_fills_no_memory(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000)
    program(node, "curl", 'while [ "$1" != -o ]; do shift; done; head -c 1000000 /dev/zero >"$2"; printf 200')
    node.do('send_devices "$1"', MAC)
    assert (node.run / "devices.answer").stat().st_size <= 64 * 1024


# --- network devices that no driver takes


def test_network_devices_without_a_driver_are_named_with_ids_and_class(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    sysfs.device("pci0000:00/0000:00:04.0", fake.MLX5)
    sysfs.device("pci0000:00/0000:00:05.0", fake.AHCI)
    sysfs.device("pci0000:00/0000:00:06.0", fake.MLX5_IB)
    sysfs.device("pci0000:00/0000:00:07.0/virtio3", fake.VIRTIO_NET)
    sysfs.device("pci0000:00/0000:00:07.1/virtio4", fake.VIRTIO_BLK)
    sysfs.device("usb1/1-1/1-1:1.0", fake.USB_ECM)
    sysfs.device("usb1/1-2/1-2:1.0", fake.USB_VENDOR)
    sysfs.device("usb1/1-3/1-3:1.0", fake.USB_STICK)
    sysfs.device("vmbus/x", "vmbus:635161f83edfc546913ff2d2f965ed0e")
    start = "no driver in this stage 1 for network device "
    assert sorted(node.out("undriven_nics").splitlines()) == [
        start + "0000:00:04.0 [15b3:1017], class 0200",
        start + "0000:00:06.0 [15b3:1017], class 0207",
        start + "1-1:1.0 [0525:a4a2]",
        start + "virtio3 [1af4:0001]",
        start + "x",
    ]
    more = "no driver in this stage 1 for 1-2:1.0 [0bda:8152], which may be a network device"
    assert more in node.out("undriven_nics all").splitlines()


ALIASES = [
    fake.E1000, fake.MLX5_IB, fake.AHCI, fake.XHCI, fake.BRIDGE, fake.GPU, fake.VIRTIO_NET, fake.VIRTIO_BLK,
    fake.USB_ECM, fake.USB_VENDOR, fake.USB_STICK, "xen:vif", "xen:vbd", "vmbus:635161f83edfc546913ff2d2f965ed0e",
    "vmbus:d96361baa104294db60572e2ffb1dc7f", "acpi:PNP0501:",
    *(f"usb:v0B6Ap0000d0000dc02dsc00dp00ic{c}in00" for c in (
        "02isc02ipFF", "02isc02ip01", "02isc0Aip00", "02isc0Cip07", "02isc0Dip00", "02isc0Eip00", "E0isc01ip03",
        "E0isc01ip01", "EFisc04ip01", "EFisc01ip01", "EFisc02ip01")),
]  # fmt: skip


def test_node_and_master_call_the_same_devices_networks(node: Node, sysfs: Sysfs) -> None:
    script = 'for alias in "$@"; do if nic_kind "$alias"; then echo "$alias"; fi; done'
    assert node.out(script, *ALIASES).split() == [a for a in ALIASES if class_of(a) in ("network", "infiniband")]


def test_a_driver_that_does_not_take_its_device_is_not_called_missing(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:04.0", fake.MLX5)
    program(node, "modprobe", 'case $* in "-q -D pci:"*) echo insmod /lib/modules/x/mlx5_core.ko ;; esac')
    assert node.out("undriven_nics").strip() == (
        "the driver of this stage 1 does not take network device 0000:00:04.0 [15b3:1017], class 0200 (firmware?)"
    )


def test_the_node_says_them_on_its_consoles_and_in_the_reason(node: Node, sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.device("pci0000:00/0000:00:04.0", fake.MLX5)
    sysfs.device("pci0000:00/0000:00:05.0", fake.WIFI)
    said = "no driver in this stage 1 for network device 0000:00:04.0 [15b3:1017], class 0200"
    reason = node.reason('no_nic "no network interface has the address X"')
    assert reason.startswith("no network interface has the address X; no driver in this stage 1")
    assert said in reason
    console = (tmp_path / "console").read_text()
    assert f"capsulekit: {said}\n" in console
    assert "0000:00:05.0 [8086:2723], class 0280" in console


def test_where_every_network_device_has_its_driver_nothing_is_said(node: Node, sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.device("pci0000:00/0000:00:03.0", fake.E1000, "e1000", "e1000")
    assert node.out("say_undriven_nics all") == ""
    assert not (tmp_path / "console").exists()


def test_loading_drivers_names_the_network_devices_left_over(node: Node, sysfs: Sysfs) -> None:
    sysfs.device("pci0000:00/0000:00:04.0", fake.MLX5)
    (node.proc / "filesystems").write_text("nodev\toverlay\n\tsquashfs\n")
    node.do("load_drivers")  # this host may have no loop devices: that comes after it
    assert "[15b3:1017]" in detail(node)
