"""A node's list of devices as text, what of it is refused, and which class a device is of."""

from __future__ import annotations

import fake_sysfs as fake
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsulekit.errors import CapsulekitError
from provisioner import devices
from provisioner.devices import Device, class_of, format_devices, ids_of, parse_devices

LINE = f"{fake.E1000} e1000 module=e1000 boot count=2"


def test_a_list_is_read_sorted_with_equal_kinds_together() -> None:
    text = f"{fake.AHCI} -\n{LINE}\n{fake.E1000} e1000 module=e1000\n{fake.AHCI} -\n"
    assert parse_devices(text.encode()) == (
        Device(fake.E1000, "e1000", "e1000", count=1),
        Device(fake.E1000, "e1000", "e1000", boot=True, count=2),
        Device(fake.AHCI, count=2),
    )


def test_two_words_a_line_are_enough_and_the_last_line_may_lack_its_end() -> None:
    assert parse_devices(f"{fake.XHCI} xhci_hcd".encode()) == (Device(fake.XHCI, "xhci_hcd"),)


NAMES = st.text("aZ09._+-", max_size=9).map(lambda tail: f"n{tail}") | st.just("")
PRINTABLE = st.text("".join(map(chr, range(0x21, 0x7F))), max_size=30)


@given(
    st.lists(
        st.builds(
            lambda alias, driver, module, boot, count: Device(alias, driver, module if driver else "", boot, count),
            PRINTABLE.map(lambda tail: f"pci:{tail}"), NAMES, NAMES, st.booleans(), st.integers(1, 99),
        ),
        min_size=1, max_size=9, unique_by=lambda d: (d.modalias, d.driver, d.module, d.boot),
    )
)  # fmt: skip
def test_what_is_written_is_read_again(wanted: list[Device]) -> None:
    assert parse_devices(format_devices(wanted).encode()) == tuple(sorted(wanted))


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        fake.E1000,
        f"{fake.E1000}  e1000",
        f" {fake.E1000} e1000",
        f"{fake.E1000} e1000 ",
        f"{fake.E1000} e1000\r",
        f"{fake.E1000} e1000 module=",
        f"{fake.E1000} - module=e1000",
        f"{fake.E1000} e1000 boot module=e1000",
        f"{fake.E1000} e1000 count=0",
        f"{fake.E1000} e1000 count=-1",
        f"{fake.E1000} e1000 count=010",
        f"{fake.E1000} e1000 count=100000",
        f"{fake.E1000} e1000 surprise",
        f"{fake.E1000} ../../etc",
        f"{fake.E1000} e1000\x1b[2J",
        f"{fake.E1000}\x00 e1000",
        f"{fake.E1000}\u00e9 e1000",
        f"{fake.E1000} {'d' * 65}",
        "nocolon e1000",
        ":x e1000",
        "PCI:x e1000",
        f"pci:{'x' * 4081} e1000",
    ],
)
def test_a_line_that_is_not_understood_refuses_the_list_and_is_named(line: str) -> None:
    with pytest.raises(CapsulekitError, match="line 2 of the list"):
        parse_devices(f"{LINE}\n{line}\n".encode())


@pytest.mark.parametrize("body", [b"", b"\n", b"\n\n", b"\xff\xfe", LINE.encode() + b"\n\n"])
def test_nothing_is_no_list(body: bytes) -> None:
    with pytest.raises(CapsulekitError, match="not understood"):
        parse_devices(body)


def test_a_list_too_long_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(CapsulekitError, match="longer than 262144 bytes"):
        parse_devices(b"x" * (devices.MOST_BYTES + 1))
    with pytest.raises(CapsulekitError, match="5000 lines, at most 4096"):
        parse_devices(b"a:b -\n" * 5000)
    with pytest.raises(CapsulekitError, match="more than 65535 of one kind"):
        parse_devices(b"a:b - count=60000\na:b - count=60000\n")
    assert parse_devices(b"a:b -\n" * 4096) == (Device("a:b", count=4096),)


@pytest.mark.parametrize(
    ("modalias", "kind"),
    [
        (fake.E1000, "network"),
        (fake.MLX5, "network"),
        (fake.MLX5_IB, "infiniband"),
        (fake.WIFI, "other"),
        (fake.AHCI, "storage"),
        (fake.XHCI, "usb"),
        (fake.BRIDGE, "other"),
        (fake.GPU, "other"),
        (fake.VIRTIO_PCI, "virtio"),
        (fake.VIRTIO_NET, "network"),
        (fake.VIRTIO_BLK, "storage"),
        ("virtio:d00000004v00001AF4", "other"),
        ("pci:v00001077d00002261sv00001077sd000002A7bc0Csc04i00", "storage"),
        (fake.USB_ECM, "network"),
        (fake.USB_VENDOR, "other"),
        (fake.USB_STICK, "storage"),
        ("usb:v0BDBp1911d0000dc02dsc00dp00ic02isc02ip01in01", "other"),
        ("usb:v22B8p2E24d0404dc00dsc00dp00icE0isc01ip03in00", "network"),
        ("vmbus:635161f83edfc546913ff2d2f965ed0e", "network"),
        ("usb:v0B6Ap0000d0000dc02dsc00dp00ic02isc02ipFFin00", "network"),
        ("vmbus:32264132cb86a2449b5c50d1417354f5", "storage"),
        ("xen:vif", "network"),
        ("acpi:PNP0501:", "other"),
        ("pci:v00008086", "other"),
        (f"{fake.E1000}x", "other"),
    ],
)
def test_the_class_comes_from_the_modalias(modalias: str, kind: str) -> None:
    assert class_of(modalias) == kind


def test_a_network_may_be_behind_these() -> None:
    assert [Device(a).is_network for a in (fake.E1000, fake.MLX5_IB, fake.VIRTIO_PCI, fake.VIRTIO_NET)] == [True] * 4
    assert not Device(fake.AHCI).is_network
    assert not Device("pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc80i00").is_network
    assert Device(fake.USB_VENDOR, boot=True).is_network


def test_a_device_is_looked_up_by_its_ids() -> None:
    assert ids_of(fake.MLX5) == "15b3:1017"
    assert ids_of(fake.USB_VENDOR) == "0bda:8152"
    assert ids_of("acpi:" + "x" * 100) == "acpi:" + "x" * 55
