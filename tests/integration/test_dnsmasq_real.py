"""``capsulekit serve`` as a process, with the real dnsmasq, answering a real DHCP client in network namespaces."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from netns import Wire, wire
from serving import serving, until
from small_site import MAC, make_site

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner import pki
from provisioner.netboot.config import config_text
from provisioner.netboot.dnsmasq import check_config
from provisioner.netboot.files import try_files
from provisioner.netboot.networks import load_networks
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry
from provisioner.siteconf import load_site

ADDRESS = "10.77.0.1"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


# What iPXE sends in option 175: tags with length and value, 0xb1 the bus id, 0xeb the version, 0x13 HTTP.
BUS_AND_VERSION, HTTP, OTHERS = "b10501808610" + "0eeb0301" + "0000", "130101", "170101220101210101"
BOOT_FILES = (
    ([f"0xaf:{BUS_AND_VERSION}{OTHERS}{HTTP}"], "chain.ipxe"),
    ([f"0xaf:{HTTP}{BUS_AND_VERSION}{OTHERS}", "0x5d:0007"], "chain.ipxe"),
    ([f"0xaf:{HTTP}", "0x5d:0006"], "chain.ipxe"),
    # An iPXE without HTTP could not load our script: it gets one that can.
    ([f"0xaf:{BUS_AND_VERSION}{OTHERS}"], "undionly.kpxe"),
    ([f"0xaf:{BUS_AND_VERSION}{OTHERS}", "0x5d:0000"], "undionly.kpxe"),
    ([f"0xaf:{BUS_AND_VERSION}{OTHERS}", "0x5d:0007"], "ipxe.efi"),
    (["0x5d:0000"], "undionly.kpxe"),
    (["0x5d:0007"], "ipxe.efi"),
    (["0x5d:0009"], "ipxe.efi"),
    (["0x5d:0010"], f"http://{ADDRESS}:8009/boot/ipxe.efi"),
    (["0x5d:0006"], "no-ipxe-for-this-kind-of-firmware"),
    (["0x5d:000b"], "no-ipxe-for-this-kind-of-firmware"),
)


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return make_site(tmp_path, interface="eth0", address=f"{ADDRESS}/24")


def test_a_node_gets_address_name_and_boot_file_and_a_stop_leaves_nothing(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    registry = open_registry(paths)
    registry.add_node(MAC, "compute7.rack", defaults=Defaults())
    registry.close()
    with serving(net, paths, tmp_path) as server:
        lease = net.udhcpc(tmp_path, "-x", "hostname:liar")
        assert ADDRESS.rpartition(".")[0] in lease["ip"]
        assert lease["hostname"] == "compute7"
        assert lease["domain"] == "site.test"
        # No option 175: this client is no iPXE and gets one.
        assert (lease["boot_file"], lease["siaddr"]) == ("undionly.kpxe", ADDRESS)
        for options, file in BOOT_FILES:
            answer = net.udhcpc(tmp_path, *(word for option in options for word in ("-x", option)))
            assert (answer.get("boot_file"), answer["ip"]) == (file, lease["ip"]), options

        chain = net.on(net.node, "curl", "-sS", f"tftp://{ADDRESS}/chain.ipxe").stdout
        assert f"chain --autofree http://{ADDRESS}:8009/v1/boot.ipxe?mac=${{netX/mac}}" in chain
        script = net.on(net.node, "curl", "-sS", f"http://{ADDRESS}:8009/v1/boot.ipxe?mac={MAC}").stdout
        assert f"ck.mac={MAC} ck.ticket=" in script
        answer = net.on(net.node, "busybox", "nslookup", "compute7.site.test", ADDRESS).stdout
        assert lease["ip"] in answer

        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert net.pids(net.master) == []
        assert not (tmp_path / "ready").exists()
    last = server.log.read_text().splitlines()[-1]
    assert last.split()[1] == "stopped"


# By DHCPv6 (options 15, user class, and 61, kind of firmware).
IPXE6 = "15=0004" + b"iPXE".hex()
BOOT_URLS = (
    ([IPXE6], "tftp://[fd00:77::1]/chain.ipxe"),
    ([IPXE6, "61=0007"], "tftp://[fd00:77::1]/chain.ipxe"),
    (["61=0007"], "tftp://[fd00:77::1]/ipxe.efi"),
    (["61=0009"], "tftp://[fd00:77::1]/ipxe.efi"),
    (["61=0006"], "-"),
    ([], "-"),
)


def test_a_node_without_ipv4_gets_addresses_urls_and_its_boot_script(tmp_path: Path) -> None:
    paths = make_site(tmp_path, interface="eth0", address="fd00:77::1/64")
    ask = Path(__file__).parents[1] / "dhcp6.py"
    with wire("fd00:77::1/64", MAC) as net, serving(net, paths, tmp_path) as server:
        # The kernel makes its own address of the announced prefix: as stage 1 does.
        def address() -> str:
            return net.on(net.node, "ip", "-6", "-brief", "address", "show", "dev", "eth0", "-tentative").stdout

        until(lambda: "fd00:77::5054:ff:fe12:3456/64" in address())
        for options, url in BOOT_URLS:
            answer = net.on(net.node, sys.executable, ask, "eth0", MAC, *options).stdout.split()
            assert (answer[0].startswith("fd00:77::1"), answer[1]) == (True, url), options
        chain = net.on(net.node, "curl", "-sS", "-g", "tftp://[fd00:77::1]/chain.ipxe").stdout
        assert "chain --autofree http://[fd00:77::1]:8009/v1/boot.ipxe?mac=" in chain
        script = net.on(net.node, "curl", "-sS", "-g", f"http://[fd00:77::1]:8009/v1/boot.ipxe?mac={MAC}").stdout
        assert "\nkernel http://[fd00:77::1]:8009/boot/${cpu}/vmlinuz " in script
        # iPXE asks from another address than stage 1 will, so there is no ticket in it: stage 1 gets its own.
        assert f" ck.mac={MAC} console=" in script and "ck.ticket" not in script
        ask_ticket = ["--cacert", pki.ca_path(paths), "--data", f"mac={MAC}", "https://[fd00:77::1]:8010/v1/ticket"]
        assert net.on(net.node, "curl", "-sS", "-g", *ask_ticket).stdout.startswith("ticket ")
        assert f"ticket mac={MAC} addr=fd00:77::5054:ff:fe12:3456" in server.log.read_text()


def test_a_killed_dnsmasq_comes_back(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path) as server:
        [first] = server.dnsmasq()
        os.kill(first, signal.SIGKILL)
        until(lambda: server.dnsmasq() not in ([], [first]))
        assert net.udhcpc(tmp_path)["boot_file"] == "undionly.kpxe"
        log = server.log.read_text()
        assert "dnsmasq-died status=-9" in log
        assert "dnsmasq-restarted" in log
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(15) == 0
    assert net.pids(net.master) == []


def test_dnsmasq_does_not_outlive_a_killed_server(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path) as server:
        assert server.dnsmasq()
        server.process.kill()
        server.process.wait()
        until(lambda: net.pids(net.master) == [])
    with serving(net, paths, tmp_path):
        assert net.udhcpc(tmp_path)["ip"]


def test_a_name_changed_by_a_command_reaches_dhcp_within_seconds(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path) as server:
        [pid] = server.dnsmasq()
        registry = open_registry(paths)
        registry.add_node(MAC, "late", defaults=Defaults())
        registry.close()
        until(lambda: net.udhcpc(tmp_path).get("hostname") == "late")
        assert server.dnsmasq() == [pid]


def test_systemd_is_told_when_it_is_ready(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)
        with serving(net, paths, tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")):
            assert notify.recv(100) == b"READY=1"


def refusal(net: Wire, paths: SitePaths, folder: Path) -> str:
    """What a start that must fail says, log lines aside."""
    with serving(net, paths, folder, ready=False) as server:
        assert server.process.wait(30) == 1
        assert net.pids(net.master) == []
        assert not (folder / "ready").exists()
        text = server.log.read_text()
    assert "Traceback" not in text
    return "\n".join(line for line in text.splitlines() if line.startswith(("ERROR", "   ")))


@pytest.mark.parametrize("port", [8009, 8010])
def test_a_port_in_use_is_one_clear_line_and_nothing_keeps_running(
    net: Wire, paths: SitePaths, tmp_path: Path, port: int
) -> None:
    hold = f"import socket, time; s = socket.create_server(('{ADDRESS}', {port})); print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen(["ip", "netns", "exec", net.master, sys.executable, "-c", hold], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        holder.stdout.readline()
        with serving(net, paths, tmp_path, ready=False) as server:
            assert server.process.wait(30) == 1
            assert net.pids(net.master) == [holder.pid]
            assert f"ERROR: can't listen on {ADDRESS}:{port}: address already in use\n" in server.log.read_text()
    finally:
        holder.kill()
        holder.communicate()


def test_a_second_dnsmasq_on_the_machine_is_named(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    other = subprocess.Popen(
        [
            *["ip", "netns", "exec"],
            net.master,
            *["dnsmasq", "-k", "-z", "-i", "eth0", "-u", "root", "-C", "/dev/null", "-x"],
            "",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: "dnsmasq" in Path(f"/proc/{other.pid}/comm").read_text())
        time.sleep(0.3)
        with serving(net, paths, tmp_path, ready=False) as server:
            assert server.process.wait(30) == 1
            assert net.pids(net.master) == [other.pid]
            said = server.log.read_text()
            assert re.search(r"^ERROR: dnsmasq does not start: .*Address already in use\n {7}another DHCP", said, re.M)
            assert 'says=""' not in said
    finally:
        other.terminate()
        other.wait()


def test_a_missing_interface_and_a_missing_address_are_named(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    site = paths.config / "site.toml"
    good = site.read_text()
    site.write_text(good.replace('"eth0"', '"eth9"'))
    assert refusal(net, paths, tmp_path).startswith("ERROR: there is no network interface eth9")
    site.write_text(good.replace(f'"{ADDRESS}/24"', '"10.77.0.2/24"'))
    assert refusal(net, paths, tmp_path).startswith("ERROR: interface eth0 does not have the address 10.77.0.2")


def test_a_site_without_stage_1_says_how_to_get_it(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    (paths.state / "stage1" / "amd64" / "stage1.img").unlink()
    said = refusal(net, paths, tmp_path)
    assert "stage 1 is incomplete" in said and "capsulekit stage1 build" in said
    (paths.state / "stage1" / "amd64").unlink()
    said = refusal(net, paths, tmp_path)
    assert "no stage 1 is installed" in said and "capsulekit stage1 build" in said


def test_dnsmasq_itself_accepts_what_we_write(paths: SitePaths, tmp_path: Path) -> None:
    config = load_site(paths)
    for mode in ("own", "proxy", "off"):
        main = config_text(replace(config, dhcp=mode), load_networks(paths, config), tmp_path, tmp_path / "none")
        try_files({"dnsmasq.conf": main, "dhcp-hosts": f"{MAC},n0000\n", "upstream": "server=10.9.9.9\n"})


@pytest.mark.parametrize(("name", "line"), [("dhcp-hosts", "zz:zz,n0000"), ("upstream", "server=nowhere")])
def test_a_list_dnsmasq_refuses_is_refused_before_it_is_used(name: str, line: str) -> None:
    with pytest.raises(CapsulekitError, match=r"^dnsmasq refuses its configuration: "):
        try_files({name: f"{line}\n"})


def test_a_configuration_dnsmasq_refuses_is_one_clear_error(paths: SitePaths, tmp_path: Path) -> None:
    config = replace(load_site(paths), range_start="10.77.0.300")
    (tmp_path / "dnsmasq.conf").write_text(
        config_text(config, load_networks(paths, config), tmp_path, tmp_path / "none")
    )
    with pytest.raises(
        CapsulekitError, match=r"^dnsmasq refuses its configuration: bad dhcp-range at line \d+ of .*"
    ) as caught:
        check_config(tmp_path / "dnsmasq.conf")
    assert "site.toml" in (caught.value.hint or "")


def test_lines_of_the_sites_own_are_added_and_checked(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    more = paths.config / "dnsmasq.d"
    more.mkdir()
    (more / "old-rom.conf").write_text("dhcp-match=set:old,60,old-rom\ndhcp-boot=tag:old,special.kpxe\n")
    (more / "notes.txt").write_text("not a line of dnsmasq\n")
    with serving(net, paths, tmp_path):
        assert net.udhcpc(tmp_path, "-V", "an old-rom")["boot_file"] == "special.kpxe"
        assert net.udhcpc(tmp_path)["boot_file"] == "undionly.kpxe"
    (more / "old-rom.conf").write_text("dhcp-baat=x\n")
    said = refusal(net, paths, tmp_path)
    assert "old-rom.conf" in said and "dnsmasq.d" in said
