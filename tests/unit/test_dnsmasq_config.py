"""What dnsmasq and iPXE are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.netboot.dnsmasq import write_config, write_hosts
from provisioner.netboot.interfaces import ipv4_addresses, require_address
from provisioner.netboot.ipxe import boot_script, write_tftp
from provisioner.siteconf import SiteConfig

SITE = SiteConfig(
    interface="eth1", address="10.0.0.1/16", range_start="10.0.1.1", range_end="10.0.1.250", domain="site.test"
)


def lines_of(folder: Path, site: SiteConfig = SITE) -> list[str]:
    text = write_config(folder, site).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_dhcp_is_answered_on_the_named_interface_only(tmp_path: Path) -> None:
    named = [line for line in lines_of(tmp_path) if "interface" in line]
    assert named == [
        "interface=eth1",
        "except-interface=lo",
        "bind-interfaces",
    ]


def test_the_range_has_the_networks_mask_and_only_the_mac_counts(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    assert "dhcp-range=10.0.1.1,10.0.1.250,255.255.0.0,12h" in lines
    assert "dhcp-ignore-clid" in lines


def test_every_kind_of_firmware_gets_just_one_boot_file(tmp_path: Path) -> None:
    assert [line for line in lines_of(tmp_path) if line.startswith("dhcp-boot")] == [
        "dhcp-boot=tag:ipxe,chain.ipxe",
        "dhcp-boot=tag:!ipxe,tag:!efi,tag:!httpboot,undionly.kpxe",
        "dhcp-boot=tag:!ipxe,tag:efi,ipxe.efi",
        "dhcp-boot=tag:!ipxe,tag:httpboot,http://10.0.0.1:8009/boot/ipxe.efi",
    ]


def test_a_value_can_not_add_a_line_to_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="one line"):
        write_config(tmp_path, replace(SITE, domain="x\ndhcp-script=/bin/sh"))


def test_the_list_of_names_says_whether_it_changed(tmp_path: Path) -> None:
    names = [("52:54:00:00:00:02", "n0001"), ("52:54:00:00:00:01", "n0000")]
    assert write_hosts(tmp_path, names)
    assert (tmp_path / "dhcp-hosts").read_text() == "52:54:00:00:00:01,n0000\n52:54:00:00:00:02,n0001\n"
    assert not write_hosts(tmp_path, reversed(names))
    assert write_hosts(tmp_path, names[:1])


def test_the_chain_script_asks_by_mac_and_never_in_a_hot_loop(tmp_path: Path) -> None:
    write_tftp(tmp_path, "http://10.0.0.1:8009")
    text = (tmp_path / "chain.ipxe").read_text()
    assert text.startswith("#!ipxe\n")
    assert "chain --autofree http://10.0.0.1:8009/v1/boot.ipxe?mac=${netX/mac} ||\n" in text
    assert text.index("sleep 5") < text.index("goto retry")


def test_programs_that_are_not_installed_are_named(tmp_path: Path) -> None:
    programs = tmp_path / "ipxe"
    programs.mkdir()
    (programs / "ipxe.efi").write_bytes(b"efi")
    assert write_tftp(tmp_path / "tftp", "http://10.0.0.1:8009", programs) == ["undionly.kpxe"]
    assert (tmp_path / "tftp" / "ipxe.efi").read_bytes() == b"efi"


def test_the_boot_script_names_both_initrds_on_the_kernel_line_for_uefi() -> None:
    script = boot_script("http://10.0.0.1:8009", "52:54:00:12:34:56", "ab" * 16, "console=ttyS0")
    kernel = script.splitlines()[2]
    assert kernel == (
        "kernel http://10.0.0.1:8009/boot/vmlinuz initrd=stage1.img initrd=site.img"
        f" ck.mac=52:54:00:12:34:56 ck.ticket={'ab' * 16} console=ttyS0 rootfstype=ramfs"
    )
    assert script.splitlines()[-1] == "boot"


def test_kernel_arguments_can_not_add_a_line_to_the_boot_script() -> None:
    with pytest.raises(CapsulekitError):
        boot_script("http://10.0.0.1:8009", "52:54:00:12:34:56", "ab" * 16, "quiet\nshell")


def test_loopbacks_address_is_found() -> None:
    assert ("lo", "127.0.0.1") in ipv4_addresses()
    require_address("lo", "127.0.0.1")


def test_a_missing_interface_or_address_is_named() -> None:
    with pytest.raises(CapsulekitError, match="there is no network interface nope0"):
        require_address("nope0", "127.0.0.1")
    with pytest.raises(CapsulekitError, match=r"lo does not have the address 198\.51\.100\.7"):
        require_address("lo", "198.51.100.7")
