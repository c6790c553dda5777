"""``capsulekit serve`` as a process, with the real dnsmasq, answering a real DHCP client in network namespaces."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from netns import Wire, wire
from small_site import MAC, make_site

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.dnsmasq import check_config, write_config, write_hosts
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry
from provisioner.siteconf import load_site

ADDRESS = "10.77.0.1"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@dataclass
class Server:
    """A running ``capsulekit serve``; its log goes to ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    def dnsmasq(self) -> list[int]:
        """Its children that are dnsmasq."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "dnsmasq\n"]


def until(what: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def serving(net: Wire, paths: SitePaths, folder: Path, *, ready: bool = True, **env: str) -> Iterator[Server]:
    ready_file, log = folder / "ready", folder / "serve.log"
    command = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()"]
    command += [
        "--config-dir",
        str(paths.config),
        "--state-dir",
        str(paths.state),
        "serve",
        "--ready-file",
        str(ready_file),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["ip", "netns", "exec", net.master, *command], stderr=out, stdout=out, env={**os.environ, **env}
        )
        server = Server(process, log)
        try:
            if ready:
                until(lambda: ready_file.exists() or process.poll() is not None)
                assert process.poll() is None, log.read_text()
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                finally:
                    process.kill()
                    process.wait()


@pytest.fixture
def net() -> Iterator[Wire]:
    with wire(f"{ADDRESS}/24", MAC) as made:
        yield made


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
        as_ipxe = net.udhcpc(tmp_path, "-x", "0xaf:b10101")
        assert (as_ipxe["boot_file"], as_ipxe["ip"]) == ("chain.ipxe", lease["ip"])
        efi = net.udhcpc(tmp_path, "-x", "0x5d:0007")
        assert (efi["boot_file"], efi["ip"]) == ("ipxe.efi", lease["ip"])
        http = net.udhcpc(tmp_path, "-x", "0x5d:0010")
        assert http["boot_file"] == f"http://{ADDRESS}:8009/boot/ipxe.efi"

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
    (paths.state / "stage1" / "stage1.img").unlink()
    assert "capsulekit stage1 build" in refusal(net, paths, tmp_path)


def test_dnsmasq_itself_accepts_what_we_write(paths: SitePaths, tmp_path: Path) -> None:
    write_hosts(tmp_path, [(MAC, "n0000")])
    check_config(write_config(tmp_path, load_site(paths)))


def test_a_configuration_dnsmasq_refuses_is_one_clear_error(paths: SitePaths, tmp_path: Path) -> None:
    config = replace(load_site(paths), range_start="10.77.0.300")
    with pytest.raises(
        CapsulekitError, match=r"^dnsmasq refuses its configuration: bad dhcp-range at line \d+ of .*"
    ) as caught:
        check_config(write_config(tmp_path, config))
    assert "site.toml" in (caught.value.hint or "")
