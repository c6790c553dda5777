"""Addresses in Perceus's grammar, and the files of four network systems that are made of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.catalog.providers import Asked, hostfile, masterauth, slurm
from provisioner.catalog.providers.ipaddr import devices_of, files_for, matches
from provisioner.registry.model import Node
from provisioner.siteconf import SiteConfig

NODE = Node("52:54:00:12:34:56", "n0012", "rack", groupname="gpu-1")
SITE = SiteConfig(address="10.0.0.1/16", domain="c.test")
HOSTS = """127.0.0.1 localhost
10.0.3.12 n0012 # us
10.1.3.12 n0012-ib0
fe80::1 ip6-localhost
10.0.0.1 master m
rubbish
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text(HOSTS)
    return tmp_path


def asked(
    root: Path, text: str | bytes, node: Node = NODE, values: Mapping[str, str | int | bool] | None = None
) -> Asked:
    data = text if isinstance(text, bytes) else text.encode()
    return Asked(SitePaths(root, root), SITE, node, "init", values or {}, data, lambda: [node], None, root)


def given(root: Path, text: str) -> dict[str, str]:
    return {one.name: one.content.decode() for one in files_for(asked(root, text))}


@pytest.mark.parametrize(
    ("pattern", "yes"),
    [
        ("*", True), ("n0012", True), ("n0012.rack", True), ("n00*", True), ("n001?", True), ("*12", True),
        ("n00[10-12]", True), ("n00[01,12]", True), ("n00[13-20]", False), ("n0[10-12]", False), ("n00[1-12]", False),
        ("@gpu-1", True), ("@gpu", False), ("n001", False), ("N0012", False), ("n00.2", False), ("n00[", False),
        ("[0-9]", False), ("n00[12", False), ("", False),
    ],
)  # fmt: skip
def test_which_lines_are_about_a_node(pattern: str, yes: bool) -> None:
    assert matches(pattern, NODE) is yes


@pytest.mark.parametrize(
    ("line", "address", "gateway", "dhcp"),
    [
        ("eth0:10.0.5.5/255.255.0.0/10.0.0.254", "10.0.5.5/16", "10.0.0.254", False),
        ("eth0:10.0.5.5/24", "10.0.5.5/24", "", False),
        ("eth0:[default]/[default]/[default]", "10.0.3.12/16", "10.0.0.1", False),
        ("eth0:[hostfile]/[default:eth0]", "10.0.3.12/16", "", False),
        ("ib0:[default:NAME-NIC]/24", "10.1.3.12/24", "", False),
        ("eth0:[default:nobody]/24", "", "", True),
        ("eth0:10.9.0.[nodenum]/16", "10.9.0.12/16", "", False),
        ("eth0:dhcp", "", "", True),
        ("eth0:", "", "", False),
        ("eth0:fd00::5/64/fd00::1", "fd00::5/64", "fd00::1", False),
    ],
)
def test_what_a_device_may_be_given(root: Path, line: str, address: str, gateway: str, dhcp: bool) -> None:
    (device,) = devices_of(asked(root, f"* {line}\n"))
    assert (" ".join(map(str, device.addresses)), " ".join(device.gateways), device.dhcp) == (address, gateway, dhcp)


def test_globs_add_up_and_the_nodes_own_line_is_the_last_word(root: Path) -> None:
    text = "* eth0:dhcp eth1:10.1.0.1/24\nn00* eth1:10.2.0.1/24\nn0012 eth0:10.3.0.1/24\nn0012 eth9:dhcp\n* eth8:dhcp\n"
    found = {device.name: device for device in devices_of(asked(root, text))}
    assert list(found) == ["eth0", "eth1"]
    assert [str(found[name].addresses[0]) for name in found] == ["10.3.0.1/24", "10.2.0.1/24"]
    assert not found["eth0"].dhcp
    assert devices_of(asked(root, "n0013 eth0:dhcp\n")) == []
    assert given(root, "n0013 eth0:dhcp\n") == {}


def test_an_alias_is_a_second_address_of_its_device(root: Path) -> None:
    (device,) = devices_of(asked(root, "* eth0(MTU=9000):10.0.5.5/24 eth0_1:10.7.5.5/24\n"))
    assert [str(address) for address in device.addresses] == ["10.0.5.5/24", "10.7.5.5/24"]
    assert device.options == {"MTU": "9000"}


@pytest.mark.parametrize(
    "word",
    ["eth0", "eth0:10.0.0.300/24", "eth0:10.0.0.5/33", "eth0:10.0.0.5/24/nowhere", "et h0:dhcp", "eth0(MTU=x):dhcp",
     "eth0(COLOR=red):dhcp", "eth0(DNS=a;b):dhcp", "../x:dhcp", "eth0:10.0.0.5/24/1/2", "averyveryverylong0:dhcp",
     "eth0:[nonsense]/24", "eth0:fd00::5", "eth0:fd00::5/[default]", "eth0:\xff/24", "eth0(DOMAIN=a\"b):dhcp"],
)  # fmt: skip
def test_a_word_that_is_not_understood_is_named(root: Path, word: str) -> None:
    with pytest.raises(CapsulekitError):
        devices_of(asked(root, f"* {word}\n"))


TEXT = "* boot:10.0.5.5/16/10.0.0.1 ib0(MTU=4092&DNS=10.0.0.1,fd00::1&DOMAIN=a.test,b.test):dhcp\n"


def test_networkd(root: Path) -> None:
    found = given(root, TEXT)
    assert found["networkd-boot"].splitlines()[1:] == [
        "[Match]", "MACAddress=52:54:00:12:34:56", "", "[Network]", "Address=10.0.5.5/16", "Gateway=10.0.0.1",
        "KeepConfiguration=yes",
    ]  # fmt: skip
    assert found["networkd-ib0"].splitlines()[1:] == [
        "[Match]", "Name=ib0", "", "[Network]", "DHCP=yes", "DNS=10.0.0.1", "DNS=fd00::1", "Domains=a.test b.test",
        "", "[Link]", "MTUBytes=4092",
    ]  # fmt: skip


def test_networkmanager(root: Path) -> None:
    found = given(root, TEXT)
    assert found["nm-boot"].splitlines()[1:] == [
        "[connection]", "id=capsulekit-boot", "type=ethernet", "autoconnect=true", "", "[ethernet]",
        "mac-address=52:54:00:12:34:56", "", "[ipv4]", "method=manual", "address1=10.0.5.5/16,10.0.0.1", "",
        "[ipv6]", "method=link-local",
    ]  # fmt: skip
    assert "type=infiniband" in found["nm-ib0"] and "interface-name=ib0" in found["nm-ib0"]
    assert "dns=10.0.0.1;\ndns-search=a.test;b.test;" in found["nm-ib0"] and "dns=fd00::1;" in found["nm-ib0"]


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_ifupdown(root: Path) -> None:
    found = given(root, TEXT)
    assert found["ifupdown"].splitlines()[1:] == [
        "auto boot0", "iface boot0 inet static", "    address 10.0.5.5", "    netmask 255.255.0.0",
        "    gateway 10.0.0.1",
        "", "auto ib0", "iface ib0 inet dhcp", "    mtu 4092", "    dns-nameservers 10.0.0.1 fd00::1",
        "    dns-search a.test b.test",
    ]  # fmt: skip
    (root / "interfaces").write_text(found["ifupdown"])
    done = subprocess.run(["busybox", "ifup", "-n", "-a", "-i", root / "interfaces"], capture_output=True, text=True)
    assert "ip addr add 10.0.5.5/16 dev boot0" in done.stdout and "default via 10.0.0.1 dev boot0" in done.stdout
    assert "MACAddress=52:54:00:12:34:56\n\n[Link]\nName=boot0\n" in found["link"]
    assert "link" not in given(root, "* eth0:dhcp\n")


def test_netplan_is_yaml_that_means_what_was_meant(root: Path) -> None:
    told = yaml.safe_load(given(root, TEXT)["netplan"])["network"]
    assert told == {
        "version": 2,
        "ethernets": {
            "boot": {
                "match": {"macaddress": "52:54:00:12:34:56"}, "dhcp4": False, "addresses": ["10.0.5.5/16"],
                "routes": [{"to": "default", "via": "10.0.0.1"}],
            },
            "ib0": {
                "dhcp4": True, "mtu": 4092,
                "nameservers": {"addresses": ["10.0.0.1", "fd00::1"], "search": ["a.test", "b.test"]},
            },
        },
    }  # fmt: skip


def test_both_families_keep_their_gateway_and_their_metric(root: Path) -> None:
    found = given(root, "* eth0(METRIC=50):10.0.5.5/24/10.0.5.1 eth0_1:fd00::5/64/fd00::1 eth0_2:10.7.0.5/24\n")
    assert found["networkd-eth0"].count("[Route]") == 2 and found["networkd-eth0"].count("Metric=50") == 2
    assert "Gateway=10.0.5.1\nMetric=50\n" in found["networkd-eth0"]
    assert "address1=10.0.5.5/24,10.0.5.1\naddress2=10.7.0.5/24\nroute-metric=50\n" in found["nm-eth0"]
    assert "address1=fd00::5/64,fd00::1\nroute-metric=50\n" in found["nm-eth0"]
    assert found["ifupdown"].splitlines()[2:] == [
        "iface eth0 inet static", "    address 10.0.5.5", "    netmask 255.255.255.0", "    gateway 10.0.5.1",
        "    metric 50", "iface eth0 inet6 static", "    address fd00::5", "    netmask 64", "    gateway fd00::1",
        "iface eth0 inet static", "    address 10.7.0.5", "    netmask 255.255.255.0",
    ]  # fmt: skip
    told = yaml.safe_load(found["netplan"])["network"]["ethernets"]["eth0"]
    assert told["routes"] == [
        {"to": "default", "via": "10.0.5.1", "metric": 50}, {"to": "default", "via": "fd00::1", "metric": 50}
    ]  # fmt: skip


def test_an_address_beside_dhcp_takes_nothing_from_it(root: Path) -> None:
    found = given(root, "* eth0(METRIC=50):dhcp eth0_1:10.7.5.5/24\n")
    assert "DHCP=yes\nAddress=10.7.5.5/24\n" in found["networkd-eth0"]
    assert "[ipv4]\nmethod=auto\naddress1=10.7.5.5/24\n" in found["nm-eth0"]
    assert found["ifupdown"].splitlines()[2:] == [
        "iface eth0 inet dhcp", "    metric 50", "iface eth0 inet static", "    address 10.7.5.5",
        "    netmask 255.255.255.0",
    ]  # fmt: skip
    told = yaml.safe_load(found["netplan"])["network"]["ethernets"]["eth0"]
    assert (told["dhcp4"], told["addresses"]) == (True, ["10.7.5.5/24"])
    assert told["dhcp4-overrides"] == {"route-metric": 50}


# --- the other providers


def test_hostfile_takes_the_masters_lines_but_those_about_itself(root: Path) -> None:
    (one,) = hostfile.files_for(asked(root, "@master\n@nodes\n10.9.9.9 mine $x\n"))
    assert one.content.decode() == (
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tn0012.rack n0012\n"
        "10.0.3.12\tn0012\n10.1.3.12\tn0012-ib0\n10.0.0.1\tmaster m\n10.9.9.9 mine $x\n"
    )


def test_masterauth_sends_people_without_their_hashes_unless_told(root: Path) -> None:
    (root / "etc/passwd").write_bytes(
        b"root:x:0:0::/:/x\nkim:$6$old:1000:1000:K \xff$HOME:/h:/x\nbad:x:y\nnobody:x:65534:1::/:/x\n"
    )
    (root / "etc/group").write_bytes(b"kim:pw:1000:lee\nwheel:x:10:\n")
    (root / "etc/shadow").write_bytes(b"root:$6$r:1::::::\nkim:$6$s:1::::::\n")
    values = {"first_id": 1000, "last_id": 60000, "passwords": False}
    files = {one.name: one for one in masterauth.files_for(asked(root, "", values=values))}
    assert files["passwd"].content == b"kim:x:1000:1000:K \xff$HOME:/h:/x\n"
    assert files["group"].content == b"kim:x:1000:lee\n"
    assert set(files) == {"passwd", "group"}
    files = {one.name: one for one in masterauth.files_for(asked(root, "", values={**values, "passwords": True}))}
    assert files["shadow"].content == b"kim:$6$s:1::::::\n" and files["shadow"].secret


def test_slurm_sends_what_is_named_and_nothing_from_elsewhere(root: Path) -> None:
    (root / "etc/slurm").mkdir()
    (root / "etc/slurm/slurm.conf").write_text("Include capsulekit-nodes.conf\n")
    values = {"folder": "/etc/slurm", "target": "/etc/slurm-llnl", "files": "slurm.conf", "node": "CPUs=4",
              "munge_key": ""}  # fmt: skip
    files = {one.name: one for one in slurm.files_for(asked(root, "", values=values))}
    assert files["slurm.conf"].target == "/etc/slurm-llnl/slurm.conf"
    assert files["capsulekit-nodes.conf"].content == b"NodeName=n0012 CPUs=4\n"
    for wrong in ("../shadow", "slurmdbd.conf", "missing.conf", "/etc/shadow"):
        with pytest.raises(CapsulekitError):
            list(slurm.files_for(asked(root, "", values={**values, "files": wrong})))
    off = replace(NODE, enabled=False)
    files = {one.name: one for one in slurm.files_for(asked(root, "", off, values))}
    assert files["capsulekit-nodes.conf"].content == b""
