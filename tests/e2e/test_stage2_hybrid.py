"""A node whose capsule lies partly on the network: a stage 2 that fails, then one that waits for its NFS server."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from e2e_bench import SMALL, Bench, shell
from nfs_server import NfsServer
from serving import set_site

from provisioner.lab.qemu import Node as Machine
from provisioner.registry.model import Event, Node

pytestmark = pytest.mark.timeout(1200)
MAC = "52:54:00:E2:E0:09"
HYBRID = "e2e-hybrid-1.amd64"
RECIPE = built.ROOT / "tests/data/hybrid/recipe.toml"
BOOT = 420.0  # seconds; emulation on two busy cores


@dataclass
class Lower:
    """The node and the server of its network layer."""

    bench: Bench
    machine: Machine
    server: NfsServer


@pytest.fixture(scope="module")
def lower(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lower]:
    """The node switched on with the small capsule and an argument that its stage 2 cannot follow; no server yet."""
    capsule = built.capsule(RECIPE)
    # The server of this test is its own: it comes and goes as the test wants.
    set_site(bench.site.paths, nfs="off")
    bench.site.command("serve", "reload")
    bench.site.command("vnfs", "import", str(capsule))
    bench.site.command("node", "add", MAC, "hybrid.new")
    bench.site.command("node", "set", "vnfs", SMALL, "hybrid")
    bench.site.command("node", "set", "kargs", "ck.overlay-size=junk", "hybrid")
    machine = bench.lab.node(MAC, memory=768)
    with NfsServer(bench.lab, capsule, Path(tmp_path_factory.mktemp("nfs")) / "server") as server:
        machine.start()
        try:
            yield Lower(bench, machine, server)
        finally:
            machine.stop()
            set_site(bench.site.paths, nfs="ganesha")
            bench.site.command("serve", "reload")


def test_a_stage_2_that_fails_says_why_and_the_master_learns_of_it(lower: Lower) -> None:
    shown = lower.machine.console.expect(r"FAILED stage 2: [^\r\n]*\r", BOOT).group(0)
    assert "ck.overlay-size=junk is no size: a number with k, m, g or %" in shown
    lower.machine.console.expect(r"rebooting in \d+ s; the master sees", 10)
    lower.bench.site.command("node", "set", "vnfs", HYBRID, "hybrid")
    lower.bench.site.command("node", "set", "kargs", f"ck.hybrid=nfs4:{lower.bench.lab.ip}:/hybrid", "hybrid")

    def started_over(node: Node, _events: list[Event]) -> bool:
        return node.status == "init" and "did not come up" in node.error

    lower.bench.site.wait(MAC, started_over, BOOT, "another start")
    status = lower.bench.site.command("node", "status", "hybrid")
    assert re.search(r"the boot before: handed over at [-0-9: ]+, but the system did not come up", status)


def test_a_server_that_comes_later_than_its_nodes_is_waited_for(lower: Lower) -> None:
    waiting = (
        rf"waiting for the network layer {re.escape(lower.bench.lab.ip)}:/hybrid: [^\r\n]+; trying again in (\d+) s"
    )
    pauses = [int(lower.machine.console.expect(waiting, BOOT).group(1)) for _ in range(2)]
    assert 2 <= pauses[0] <= 3 and 4 <= pauses[1] <= 6
    lower.server.start()
    lower.machine.console.expect(r"the network layer [^\r\n]+ is mounted", 120)
    node = lower.bench.site.wait_ready(MAC, BOOT)
    assert node.error == ""
    lower.machine.console.sendline("")
    lower.machine.console.expect(r"root@hybrid:~# ", 120)


def test_its_files_are_at_their_own_paths_below_all_local_layers(lower: Lower) -> None:
    options = shell(lower.machine, "findmnt -no OPTIONS /")
    lowest = re.search(r"lowerdir=([^,\s]+)", options)
    assert lowest is not None and lowest.group(1).split(":")[-1] == "/s/h"
    wanted = (lower.server.layer / "usr/share/doc/bash/copyright").read_bytes()
    assert shell(lower.machine, "wc -c </usr/share/doc/bash/copyright") == str(len(wanted))
    assert shell(lower.machine, "stat -c %u:%g:%a /usr/share/doc/bash/copyright") == "0:0:644"
    assert shell(lower.machine, "vmstat -V").startswith("vmstat from procps"), "a program of the network layer runs"
    assert (
        shell(lower.machine, "echo own >/usr/share/doc/bash/own && ls /usr/share/doc/bash | grep -c -e own -e copy")
        == "2"
    )


def test_the_card_keeps_the_name_and_the_address_it_got_in_stage_2(lower: Lower) -> None:
    nic, address = re.findall(rf"(\S+) \({MAC.lower()}\) is up with ([0-9.]+)/24", lower.machine.console.text)[0]
    assert not nic.startswith("eth"), "named as udev names it"
    assert shell(lower.machine, f"cat /sys/class/net/{nic}/address") == MAC.lower()
    # networkd has taken over, with the same lease, and would not have let go of it.
    shown = shell(lower.machine, f"networkctl status {nic} --no-pager")
    assert "/run/systemd/network/00-capsulekit.network" in shown and "configured" in shown
    addresses = shell(lower.machine, f"ip -o -4 addr show dev {nic}").splitlines()
    assert len(addresses) == 1 and f" {address}/24 " in addresses[0]
    shell(lower.machine, "systemctl restart systemd-networkd", 120)
    assert f" {address}/24 " in shell(lower.machine, f"ip -o -4 addr show dev {nic}")


def test_a_restart_of_the_server_only_delays_what_reads(lower: Lower) -> None:
    sums = "cat usr/share/doc/*/copyright | sha256sum"
    wanted = subprocess.run(
        ["sh", "-c", sums], cwd=lower.server.layer, capture_output=True, text=True, check=True
    ).stdout
    lower.server.stop()
    # Read now, before there is a server again: files that nobody has opened yet.
    shell(lower.machine, f"(cd /; {sums} >/tmp/sum 2>&1; echo $? >/tmp/status) & sleep 3; cat /tmp/status 2>&1")
    assert shell(lower.machine, "cat /tmp/status 2>/dev/null || echo waits") == "waits"
    lower.server.start()
    deadline = time.monotonic() + 180
    while shell(lower.machine, "cat /tmp/status 2>/dev/null || echo waits") == "waits":
        assert time.monotonic() < deadline, "the node did not find its server again"
        time.sleep(2)
    assert shell(lower.machine, "cat /tmp/status") == "0"
    assert shell(lower.machine, "cat /tmp/sum") == wanted.strip()
