"""What dnsmasq and iPXE are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.netboot.dnsmasq import write_config, write_hosts
from provisioner.netboot.interfaces import ipv4_addresses, ipv6_addresses, require_address
from provisioner.netboot.ipxe import boot_script, write_tftp
from provisioner.siteconf import SiteConfig

SITE = SiteConfig(
    interface="eth1", address="10.0.0.1/16", range_start="10.0.1.1", range_end="10.0.1.250", domain="site.test"
)


def lines_of(folder: Path, site: SiteConfig = SITE) -> list[str]:
    text = write_config(folder, site, folder / "none").read_text()
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
        "dhcp-boot=tag:!ipxe,tag:!arch,undionly.kpxe",
        "dhcp-boot=tag:!ipxe,tag:bios,undionly.kpxe",
        "dhcp-boot=tag:!ipxe,tag:efi,ipxe.efi",
        "dhcp-boot=tag:!ipxe,tag:httpboot,http://10.0.0.1:8009/boot/ipxe.efi",
        "dhcp-boot=tag:!ipxe,tag:arch,tag:!bios,tag:!efi,tag:!httpboot,no-ipxe-for-this-kind-of-firmware",
    ]


SIX = replace(SITE, address="fd00:77::1/64", range_start="fd00:77::100", range_end="fd00:77::1ff")


def test_a_site_of_ipv6_announces_its_prefix_and_gives_urls_in_brackets(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, SIX)
    assert "dhcp-range=fd00:77::100,fd00:77::1ff,slaac,64,12h" in lines
    assert "enable-ra" in lines
    assert [line for line in lines if "bootfile-url" in line] == [
        "dhcp-option=tag:ipxe,option6:bootfile-url,tftp://[fd00:77::1]/chain.ipxe",
        "dhcp-option=tag:!ipxe,tag:efi,option6:bootfile-url,tftp://[fd00:77::1]/ipxe.efi",
    ]
    assert not any(line.startswith("dhcp-boot") for line in lines)
    assert (SIX.plain_url, SIX.tls_url) == ("http://[fd00:77::1]:8009", "https://[fd00:77::1]:8010")


def test_a_value_can_not_add_a_line_to_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match="one line"):
        write_config(tmp_path, replace(SITE, domain="x\ndhcp-script=/bin/sh"), tmp_path / "none")


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


def script_for(*arches: str, kargs: str = "console=ttyS0") -> list[str]:
    return boot_script("http://10.0.0.1:8009", "52:54:00:12:34:56", "ab" * 16, kargs, arches).splitlines()


def test_the_boot_script_names_both_initrds_on_the_kernel_line_for_uefi() -> None:
    script = script_for("amd64", "i386")
    assert script[-4:] == [
        "kernel http://10.0.0.1:8009/boot/${cpu}/vmlinuz initrd=stage1.img initrd=site.img"
        f" ck.mac=52:54:00:12:34:56 ck.ticket={'ab' * 16} console=ttyS0 rootfstype=ramfs",
        "initrd --name stage1.img http://10.0.0.1:8009/boot/${cpu}/stage1.img",
        "initrd --name site.img http://10.0.0.1:8009/boot/site.img",
        "boot",
    ]
    assert not any("lacking" in line for line in script)


def test_without_a_ticket_the_script_names_none() -> None:
    script = boot_script("http://[fd00::1]:8009", "52:54:00:12:34:56", "", "quiet", ("amd64",))
    assert " ck.mac=52:54:00:12:34:56 quiet rootfstype=ramfs\n" in script
    assert "ck.ticket" not in script


@pytest.mark.parametrize(("has", "lacks"), [("amd64", "i386"), ("i386", "amd64")])
def test_a_site_without_a_processors_stage_1_says_so_and_asks_again_later(has: str, lacks: str) -> None:
    script = script_for(has)
    asks = script.index(f"iseq ${{cpu}} {lacks} && goto lacking ||")
    assert script.index(":known") < asks < script.index("boot") < script.index(":lacking")
    assert f"iseq ${{cpu}} {has} && goto lacking ||" not in script
    assert script[-2:] == ["sleep 60", "exit 1"]


def test_kernel_arguments_can_not_add_a_line_to_the_boot_script() -> None:
    with pytest.raises(CapsulekitError):
        script_for("amd64", kargs="quiet\nshell")


def test_loopbacks_address_is_found() -> None:
    assert ("lo", "127.0.0.1") in ipv4_addresses()
    require_address("lo", "127.0.0.1")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")
def test_loopbacks_ipv6_address_is_found_however_it_is_spelled() -> None:
    if ("lo", "::1") not in ipv6_addresses():
        pytest.skip("loopback has no IPv6 address here")
    require_address("lo", "0:0::1")
    with pytest.raises(CapsulekitError, match="lo does not have the address fd00::1"):
        require_address("lo", "fd00::1")


def test_a_missing_interface_or_address_is_named() -> None:
    with pytest.raises(CapsulekitError, match="there is no network interface nope0"):
        require_address("nope0", "127.0.0.1")
    with pytest.raises(CapsulekitError, match=r"lo does not have the address 198\.51\.100\.7"):
        require_address("lo", "198.51.100.7")
