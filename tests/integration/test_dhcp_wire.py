"""DHCP on a real wire: a foreign server is found before we serve beside it, and machines that ask become nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netns import Wire, wire

from capsulekit.sitepaths import SitePaths
from provisioner.netboot.dhcpwire import DISCOVER, discover_frame, parse_frame
from provisioner.registry.registry import open_registry
from provisioner.siteconf import load_site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
INIT = ("init", "--interface", "eth0", "--address", "10.77.0.1/24", "--range", "10.77.0.128-10.77.0.254")


@pytest.fixture
def net() -> Iterator[Wire]:
    with wire() as made:
        yield made


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "etc", tmp_path / "var")


def command(paths: SitePaths, *words: str) -> list[str]:
    program = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()", *words]
    return [*program, "--config-dir", str(paths.config), "--state-dir", str(paths.state)]


@contextmanager
def dnsmasq(net: Wire, where: str, folder: Path, *more: str) -> Iterator[None]:
    """A DHCP server of somebody else, ready to answer once dnsmasq says that it serves the range."""
    argv = [
        "ip",
        "netns",
        "exec",
        where,
        "dnsmasq",
        "--keep-in-foreground",
        "--log-facility=-",
        "--port=0",
        "--conf-file=/dev/null",
    ]
    argv += [
        "--interface=eth0",
        "--bind-interfaces",
        "--user=root",
        "--pid-file",
        f"--dhcp-leasefile={folder}/leases",
        *more,
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            end = time.monotonic() + 20
            for line in process.stderr:
                if "IP range" in line:
                    break
                assert time.monotonic() < end
            yield
        finally:
            process.terminate()


def run(net: Wire, paths: SitePaths, *words: str) -> subprocess.CompletedProcess[str]:
    return net.on(net.master, *command(paths, *words), check=False)


def test_an_interface_with_another_dhcp_server_is_refused_unless_told(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    subprocess.run(["ip", "-n", net.node, "address", "add", "10.77.0.9/24", "dev", "eth0"], check=True)
    with dnsmasq(net, net.node, tmp_path, "--dhcp-range=10.77.0.50,10.77.0.60,1h"):
        refused = run(net, paths, *INIT)
        assert refused.returncode == 1, refused.stderr
        assert "another DHCP server answers on eth0: 10.77.0.9\n" in refused.stderr
        assert "--allow-foreign-dhcp" in refused.stderr
        assert not paths.config.exists() and not paths.state.exists()
        proxy = run(net, SitePaths(tmp_path / "p", tmp_path / "pv"), *INIT, "--dhcp", "proxy")
        assert proxy.returncode == 0, proxy.stderr
        told = run(net, paths, *INIT, "--allow-foreign-dhcp")
        assert told.returncode == 0, told.stderr
        # A site that serves there already is not asked again when something else of it changes.
        assert run(net, paths, "init", "--policy", "accept").returncode == 0
    assert not (tmp_path / "leases").exists() or (tmp_path / "leases").read_text() == "", "asking took a lease"


def test_a_quiet_network_and_our_own_server_are_no_reason_to_refuse(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    with dnsmasq(net, net.master, tmp_path, "--dhcp-range=10.77.0.50,10.77.0.60,1h"):
        began = time.monotonic()
        done = run(net, paths, *INIT)
        assert (done.returncode, done.stderr) == (0, "")
        assert time.monotonic() - began < 15
    assert load_site(paths).interface == "eth0"


def test_machines_that_ask_become_nodes_in_their_order(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    assert run(net, paths, *INIT, "--allow-foreign-dhcp").returncode == 0
    macs = [f"52:54:00:77:00:{n:02x}" for n in (9, 3, 5)]
    argv = command(paths, "import", "insert-ethers", "--count", "3", "--timeout", "60")
    argv = ["ip", "netns", "exec", net.master, *argv]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        end = time.monotonic() + 30
        while b"packet" not in _sockets(watching.pid):
            assert watching.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        for mac in (*macs[:1], *macs):  # the first one asks twice
            _ip(net, "link", "set", "eth0", "down")
            _ip(net, "link", "set", "eth0", "address", mac)
            _ip(net, "link", "set", "eth0", "up")
            net.udhcpc(tmp_path, "-t", "2", "-T", "1")
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert [line.split("'")[1] for line in out.splitlines()] == ["n0000", "n0001", "n0002"]
    registry = open_registry(paths)
    assert {node.hostname: node.nodeid for node in registry.nodes()} == {
        f"n000{n}": mac.upper() for n, mac in enumerate(macs)
    }
    # All are known now: nobody is added, and the end of the time is a failure where a number was asked for.
    late = run(net, paths, "import", "insert-ethers", "--count", "1", "--timeout", "0.5")
    assert late.returncode == 1 and "0 of 1 machines asked within 0.5 s" in late.stderr
    told = run(net, paths, "import", "insert-ethers", "--timeout", "0.5", "--json")
    assert (told.returncode, json.loads(told.stdout)) == (0, {"dry_run": False, "nodes": []})
    registry.close()


def test_an_interface_that_is_not_there_is_named(net: Wire, paths: SitePaths) -> None:
    assert run(net, paths, *INIT, "--allow-foreign-dhcp").returncode == 0
    done = run(net, paths, "import", "insert-ethers", "--timeout", "1", "--interface", "nope0")
    assert done.returncode == 1 and "can't listen to DHCP on nope0" in done.stderr


def test_no_packet_breaks_the_reader() -> None:
    frame = discover_frame(bytes.fromhex("525400123456"), 7)
    message = parse_frame(frame)
    assert message is not None
    assert (message.kind, message.xid, message.mac) == (DISCOVER, 7, "52:54:00:12:34:56")
    for size in range(len(frame)):
        parse_frame(frame[:size])
    for at in range(len(frame)):
        for value in (0, 0xFF, frame[at] ^ 0x55):
            parse_frame(frame[:at] + bytes([value]) + frame[at + 1 :])


def _ip(net: Wire, *words: str) -> None:
    subprocess.run(["ip", "-n", net.node, *words], check=True)


def _sockets(pid: int) -> bytes:
    """b"packet" once the process, or its child, has a packet socket open in its namespace."""
    try:
        lines = Path(f"/proc/{pid}/net/packet").read_bytes().splitlines()
    except OSError:
        return b""
    # A socket that hears IPv4 only (0800) and no other: proc's fourth column.
    return b"packet" if any(line.split()[3] == b"0800" for line in lines[1:]) else b""
