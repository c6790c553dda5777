"""Which devices an image's modules drive: every alias that fits, present or built in, with its firmware."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from image_of import image_of, packed
from initramfs_builder import cpio
from initramfs_builder.cpio import Entry
from initramfs_builder.drivers import Cover, Driver, covers, module_index
from initramfs_builder.errors import CapsulekitError, TrustError
from small_image import MODULES, entries, module

INTEL = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"


def covered(known: dict[str, Entry], *aliases: str) -> list[Cover]:
    return covers(image_of(known.values()), aliases)


def put(known: dict[str, Entry], path: str, data: bytes) -> None:
    known[path] = cpio.regular(path, data)


def add_alias(known: dict[str, Entry], *lines: str) -> None:
    entry = known[f"{MODULES}/modules.alias"]
    assert isinstance(entry.data, bytes)
    known[entry.path] = dataclasses.replace(entry, data=entry.data + "".join(f"{one}\n" for one in lines).encode())


def test_a_device_is_driven_by_the_module_whose_alias_fits_it() -> None:
    (one,) = covered(entries(), INTEL)
    assert one.drivers == (Driver("net", False, True, ("net/old.bin",)),)
    assert one.driven and one.firmware_missing == ("net/old.bin",)


def test_a_device_that_no_alias_fits_has_no_driver() -> None:
    for alias in ("pci:v000015B3d00001017sv0sd0bc02sc00i00", "usb:v0B95", "", "pci:v00008086", "PCI:V00008086d"):
        (one,) = covered(entries(), alias)
        assert one.drivers == () and not one.driven


def test_every_hit_is_kept_and_the_order_of_devices_too() -> None:
    known = entries()
    add_alias(known, "alias pci:v00008086d0000100E* bus", "alias pci:v*d*sv*sd*bc02* bus", "alias usb:v0B95* bus")
    found = covered(known, "usb:v0B95p1790d0100", INTEL)
    assert [[driver.module for driver in one.drivers] for one in found] == [["bus", "net"], ["bus", "net"]]
    assert [one.modalias for one in found] == ["usb:v0B95p1790d0100", INTEL]


def test_what_is_built_in_needs_no_file() -> None:
    assert covered(entries(), "block-major-7-0")[0].drivers == (Driver("loop", True, False),)
    assert covered(entries(), "loop")[0].driven


def test_a_drivers_name_finds_it_with_either_dash() -> None:
    known = entries()
    put(known, f"{MODULES}/kernel/net/my-net.ko", module("my_net"))
    put(known, f"{MODULES}/modules.dep", b"kernel/net/my-net.ko:\n")
    assert [c.drivers[0].module for c in covered(known, "my_net", "my-net")] == ["my_net", "my_net"]


def test_brackets_in_an_alias_keep_their_dash() -> None:
    known = entries()
    add_alias(known, "alias dmi:*:pn[a-c]x-y:* bus")
    assert [one.driven for one in covered(known, "dmi:z:pnbx_y:z", "dmi:z:pnbx-y:", "dmi:z:pn-x-y:")] == [
        True,
        True,
        False,
    ]


def test_a_module_whose_file_or_dependency_is_gone_is_not_present() -> None:
    for gone in ("kernel/net/net.ko", "kernel/net/bus.ko"):
        known = entries()
        del known[f"{MODULES}/{gone}"]
        (one,) = covered(known, INTEL)
        assert [driver.present for driver in one.drivers] == [False] and not one.driven


def test_firmware_of_what_a_module_depends_on_counts_too() -> None:
    known = entries()
    put(known, f"{MODULES}/kernel/net/bus.ko", module("bus", firmware="bus.fw net/a.bin"))
    assert covered(known, INTEL)[0].firmware_missing == ("bus.fw", "net/old.bin")
    put(known, "usr/lib/firmware/6.1.0-test/bus.fw.xz", b"x")
    known["usr/lib/firmware/net/old.bin"] = cpio.symlink("usr/lib/firmware/net/old.bin", "a.bin")
    assert covered(known, INTEL)[0].firmware_missing == ()


def test_lines_that_are_no_aliases_are_left_out() -> None:
    known = entries()
    add_alias(known, "alias", "alias x", "alias a b c d", "rubbish", "# alias x net", "alias other unknown")
    put(known, f"{MODULES}/modules.builtin.modinfo", b"loop\0loop.alias\0loop.alias=\0=\0.alias=x\0")
    assert [one.drivers for one in covered(known, "x", "b", "other", "")] == [(), (), (), ()]
    assert covered(known, INTEL)[0].driven


def test_what_the_kernel_says_of_itself_is_built_in_whether_it_could_be_a_module_or_not() -> None:
    known = entries()
    put(known, f"{MODULES}/modules.builtin.modinfo", b"debugfs.alias=fs-debugfs\0")
    assert covered(known, "fs-debugfs")[0].drivers == (Driver("debugfs", True, False),)


def test_an_image_can_be_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(packed(entries().values()))
    assert covers(tmp_path / "image", [INTEL])[0].driven
    (tmp_path / "image").write_bytes(b"no image")
    with pytest.raises(TrustError, match="damaged image"):
        covers(tmp_path / "image", [INTEL])


def test_an_image_without_modules_or_with_those_of_two_kernels_is_refused() -> None:
    known = {path: entry for path, entry in entries().items() if not path.startswith(MODULES)}
    with pytest.raises(CapsulekitError, match="holds no kernel's modules"):
        covered(known, INTEL)
    put(known, "usr/lib/modules/1/modules.dep", b"")
    put(known, "usr/lib/modules/2/modules.dep", b"")
    with pytest.raises(CapsulekitError, match="several kernels: 1, 2"):
        covered(known, INTEL)


def test_names_of_a_recipe_are_found_by_module_alias_and_glob() -> None:
    index = module_index(image_of(entries().values()))
    assert index.named("net") == index.named("n?t") == index.named("usb:v0B95p1") == ["kernel/net/net.ko"]
    assert index.named("kernel/net/*") == ["kernel/net/net.ko", "kernel/net/bus.ko"]
    assert index.named("loop") == index.named("block-major-7-3") == index.named("kernel/drivers/block/*") == []
    assert index.named("wifi") is index.named("kernel/wifi/*") is None


def test_thousands_of_devices_are_answered_in_a_moment() -> None:
    known = entries()
    add_alias(known, *(f"alias pci:v{n:08X}d*sv*sd*bc*sc*i* net" for n in range(20_000)))
    image = image_of(known.values())
    began = time.process_time()
    found = covers(image, [f"pci:v{n % 30_000:08X}d{n:08X}sv0sd0bc02sc00i00" for n in range(10_000)])
    assert time.process_time() - began < 10
    assert sum(one.driven for one in found) == 10_000
