"""What dnsmasq and iPXE are told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from provisioner.netboot.config import config_text, names_text
from provisioner.netboot.interfaces import ipv4_addresses, ipv6_addresses, require_address
from provisioner.netboot.ipxe import boot_script, write_tftp
from provisioner.netboot.networks import Network
from provisioner.siteconf import SiteConfig

SITE = SiteConfig(
    interface="eth1", address="10.0.0.1/16", range_start="10.0.1.1", range_end="10.0.1.250", domain="site.test"
)


def own(site: SiteConfig) -> Network:
    return Network("site", site.network, site.interface, site.ip, site.range_start, site.range_end)


def lines_of(folder: Path, site: SiteConfig = SITE, *more: Network) -> list[str]:
    text = config_text(site, (own(site), *more), folder, folder / "dnsmasq.d")
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
    assert "dhcp-range=set:site,10.0.1.1,10.0.1.250,255.255.0.0,12h" in lines
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


def test_a_second_network_has_its_own_pool_gateway_and_name_servers(tmp_path: Path) -> None:
    wired = Network("storage", IPv4Network("10.1.0.0/24"), "eth2", "10.1.0.1", gateway="10.1.0.254", dns=("10.9.0.1",))
    relayed = Network("far", IPv4Network("10.2.0.0/24"), first="10.2.0.100", last="10.2.0.200")
    lines = lines_of(tmp_path, SITE, wired, relayed)
    assert [line for line in lines if line.startswith("interface=")] == ["interface=eth1", "interface=eth2"]
    assert "dhcp-range=set:storage,10.1.0.0,static,255.255.255.0,12h" in lines
    assert "dhcp-option=tag:storage,option:router,10.1.0.254" in lines
    assert "dhcp-option=tag:storage,option:dns-server,10.9.0.1" in lines
    assert "dhcp-range=set:far,10.2.0.100,10.2.0.200,255.255.255.0,12h" in lines
    # dnsmasq would name its own address on the relay's wire, where it has none.
    assert "dhcp-option=tag:far,option:dns-server,10.0.0.1" in lines


def test_beside_another_server_it_gives_files_but_no_addresses(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, replace(SITE, dhcp="proxy"))
    assert [line for line in lines if line.startswith("dhcp-range")] == [
        "dhcp-range=set:site,10.0.0.1,proxy,255.255.0.0"
    ]
    assert "dhcp-boot=tag:ipxe,chain.ipxe,,10.0.0.1" in lines
    assert not {"dhcp-authoritative", f"dhcp-hostsfile={tmp_path}/dhcp-hosts"} & set(lines)


def test_with_dhcp_off_no_line_is_about_dhcp(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, replace(SITE, dhcp="off"))
    assert [line for line in lines if line.startswith("dhcp-")] == []
    assert "enable-tftp" in lines


def test_the_master_asks_its_own_name_server_only_where_told_to(tmp_path: Path) -> None:
    for local in (True, False):
        site = replace(SITE, local_resolver=local)
        names = names_text(site, (own(site),), tmp_path, tmp_path / "dnsmasq.d").splitlines()
        assert ("interface=lo" in names, "except-interface=lo" in names) == (local, not local)
        assert "except-interface=lo" in lines_of(tmp_path, site), "addresses are given to nobody there"


def test_additions_about_addresses_and_boot_files_are_not_the_name_servers(tmp_path: Path) -> None:
    more = tmp_path / "dnsmasq.d"
    more.mkdir()
    (more / "a.conf").write_text("# why\ndhcp-range=10.0.7.1,10.0.7.9\n\n  address=/x.test/10.0.0.9\nenable-tftp\n")
    names = names_text(SITE, (own(SITE),), tmp_path, more).splitlines()
    assert names[-1] == "address=/x.test/10.0.0.9"
    assert not [line for line in names if line.startswith(("dhcp-range", "enable-tftp", "port="))]
    assert f"conf-dir={more},*.conf" in lines_of(tmp_path)
    assert "port=0" in lines_of(tmp_path), "the process for addresses is no name server"


def test_an_addition_that_changed_makes_another_main_file(tmp_path: Path) -> None:
    more = tmp_path / "dnsmasq.d"
    more.mkdir()
    texts = set()
    for line in ("dhcp-option=42,10.0.0.2", "dhcp-option=42,10.0.0.3"):
        (more / "ntp.conf").write_text(line)
        texts.add(config_text(SITE, (own(SITE),), tmp_path, more))
    assert len(texts) == 2


@pytest.mark.parametrize("key", ["domain", "range_end", "interface"])
def test_a_value_can_not_add_a_line_to_the_configuration(tmp_path: Path, key: str) -> None:
    site = replace(SITE, **{key: "x\ndhcp-script=/bin/sh"})
    with pytest.raises(CapsulekitError, match="one line"):
        config_text(site, (own(site),), tmp_path, tmp_path / "none")


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
