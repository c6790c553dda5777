"""What a lab's machine is made of, as QEMU is told."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from provisioner.lab.qemu import Card, Machine, Medium, qemu_argv

FOLDER = Path("/tmp/machine")
FIRST, SECOND = Card("52:54:00:00:00:01", "tap0", "e1000", rom=False), Card("52:54:00:00:00:02", "tap1")
pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU: run ./setup.sh test")


def argv(card: Card = SECOND, **more: Any) -> list[str]:
    return qemu_argv(Machine(card, **more), FOLDER)


def devices(words: list[str]) -> list[str]:
    """The network cards and the medium, in the order of the bus."""
    made = [word for option, word in pairwise(words) if option == "-device"]
    return [word for word in made if "netdev=" in word or "drive=" in word]


def test_a_machine_boots_from_its_card_and_has_no_disk() -> None:
    words = argv()
    assert devices(words) == ["virtio-net-pci,netdev=net0,mac=52:54:00:00:00:02,bootindex=1"]
    assert "-drive" not in words


def test_of_several_cards_only_the_one_that_boots_has_a_boot_program() -> None:
    assert devices(argv(before=(FIRST,))) == [
        "e1000,netdev=net0,mac=52:54:00:00:00:01,romfile=",
        "virtio-net-pci,netdev=net1,mac=52:54:00:00:00:02,bootindex=1",
    ]


def test_a_card_without_a_boot_program_leaves_pxe_to_the_firmware() -> None:
    assert devices(argv(FIRST, firmware="uefi")) == ["e1000,netdev=net0,mac=52:54:00:00:00:01,bootindex=1,romfile="]


@pytest.mark.parametrize(("kind", "device"), [("cd", "ide-cd"), ("usb", "usb-storage")])
def test_with_a_medium_nothing_boots_from_the_network(kind: Any, device: str) -> None:
    words = argv(medium=Medium(Path("/x.iso"), kind))
    assert devices(words) == [
        "virtio-net-pci,netdev=net0,mac=52:54:00:00:00:02,romfile=",
        f"{device},drive=medium,bootindex=0",
    ]
    assert [word for word in words if "/x.iso" in word and "readonly=on" in word]


def test_a_32_bit_machine_is_another_program_with_its_own_processor() -> None:
    words = argv(arch="i386", cpu="pentium3")
    assert Path(words[0]).name == "qemu-system-i386"
    assert words[words.index("-cpu") + 1] == "pentium3"
    assert argv()[argv().index("-cpu") + 1].startswith("qemu64,")
