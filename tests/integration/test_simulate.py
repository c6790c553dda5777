"""``capsulekit simulate`` against a real ``serve``: every pretend node comes up, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from netns import Wire
from serving import capsulekit, command, serving, set_site, until
from small_site import CAPSULE, MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry
from provisioner.simulate.pretend import mac_of

ADDRESS = "10.77.0.1"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = make_site(tmp_path, interface="eth0", address=f"{ADDRESS}/24")
    set_site(made, hosts_file="", dns_upstream="")
    registry = open_registry(made)
    registry.add_node(MAC, "real", defaults=Defaults(vnfs=CAPSULE))
    registry.close()
    return made


def left(paths: SitePaths) -> dict[str, int]:
    """How much of nodes other than the real one there is in every table of the registry and in the state folder.

    Changes stay, as those of any node that was deleted.
    """
    con = sqlite3.connect(paths.state / "registry.db")
    names = [row[0] for row in con.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'changes'")]
    of_nodes = [name for name in names if "nodeid" in [row[1] for row in con.execute(f"PRAGMA table_info({name})")]]
    assert {"nodes", "events", "tickets", "sessions", "leases"} <= set(of_nodes)
    found = {t: con.execute(f"SELECT count(*) FROM {t} WHERE nodeid <> ?", (MAC,)).fetchone()[0] for t in of_nodes}
    con.close()
    return {name: n for name, n in found.items() if n} | {str(p): 1 for p in (paths.state / "nodes").glob("06-*")}


def begin(net: Wire, paths: SitePaths, *words: str) -> subprocess.Popen[str]:
    """A simulation that goes on while the test does something."""
    argv = ["ip", "netns", "exec", net.master, *capsulekit(paths), "simulate", *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(paths: SitePaths) -> int:
    registry = open_registry(paths)
    try:
        return sum(node.status == "ready" for node in registry.nodes())
    finally:
        registry.close()


def test_forty_nodes_come_up_and_nothing_of_them_is_left(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path) as server:
        words = ["--nodes", "40", "--at-once", "16", "--fetch", "--polls", "2", "--interval", "0.1", "--json"]
        done = command(net, paths, "simulate", *words)
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert (record["ready"], record["failed"], record["limited"], record["ended"]) == (40, 0, 0, "")
        assert record["kinds"]["poll"]["count"] == 80
        assert record["kinds"]["session"]["count"] == record["kinds"]["plan"]["count"] == 40
        assert record["requests"]["count"] == sum(kind["count"] for kind in record["kinds"].values())
        assert left(paths) == {}
        again = command(net, paths, "simulate", "--nodes", "8", "--keep-alive", "--polls", "0")
        assert again.stdout.startswith("Ready: 8 of 8 pretend nodes, each after "), again.stderr
        assert "\npoll " not in again.stdout
        assert command(net, paths, "node", "list").stdout == "real\n"
        log = server.log.read_text()
    assert " state mac=06:53:49:4D:00:27 addr=127.128.0.39 state=ready" in log, "each has an address of its own"
    assert " error " not in log


def test_a_refused_node_is_counted_with_its_reason(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path) as server:
        run = begin(net, paths, "--nodes", "6", "--duration", "60", "--interval", "0.1")
        until(lambda: ready(paths) == 6)
        registry = open_registry(paths)
        registry.delete_nodes([mac_of(2)])
        registry.set_nodes("enabled", "0", [mac_of(3)])  # a node that runs goes on
        until(lambda: "path=/v1/state/ready status=401" in server.log.read_text())
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=30)
        registry.close()
    assert run.returncode == 4, err
    assert err == "ERROR: 1 of 6 pretend nodes failed\n       the master's log says more of each\n"
    assert "Ready: 6 of 6 " in out
    assert "Failed: 1 with poll: 401 no such session: boot again" in out
    assert left(paths) == {}


def test_a_master_that_dies_half_way_ends_the_run(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path) as server:
        run = begin(net, paths, "--nodes", "30", "--at-once", "10", "--duration", "600", "--interval", "0.1")
        until(lambda: ready(paths) == 10)
        server.process.kill()
        out, err = run.communicate(timeout=60)
    assert run.returncode == 4, err
    assert err.startswith("ERROR: the master stopped answering: 10 of 30 pretend nodes were ready by then\n")
    assert "Failed: " in out and "Ready: 10 of 30 " in out
    assert left(paths) == {}
    assert command(net, paths, "simulate", "--nodes", "3").returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_and_leaves_nothing(
    net: Wire, paths: SitePaths, tmp_path: Path, number: signal.Signals
) -> None:  # fmt: skip
    with serving(net, paths, tmp_path):
        run = begin(net, paths, "--nodes", "12", "--at-once", "4", "--duration", "600", "--interval", "30")
        until(lambda: ready(paths) == 4)
        run.send_signal(number)
        out, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (1, "ERROR: stopped by a signal: 4 of 12 pretend nodes had begun\n")
    assert "Ready: 4 of 12 " in out
    assert left(paths) == {}


def test_what_a_killed_run_leaves_the_next_one_or_clean_removes(net: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with serving(net, paths, tmp_path):
        for how in (["--clean", "-y"], ["--nodes", "2", "--polls", "0"]):
            run = begin(net, paths, "--nodes", "5", "--duration", "600")
            until(lambda: ready(paths) == 5)
            busy = command(net, paths, "simulate", *how)
            assert busy.returncode == 1 and "another simulate is running" in busy.stderr
            run.kill()
            run.communicate()
            assert left(paths)["nodes"] == 5
            done = command(net, paths, "simulate", *how)
            assert done.returncode == 0, done.stderr
            assert left(paths) == {}


def test_from_another_machine_the_master_sees_through_it_or_limits_it(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:  # fmt: skip
    subprocess.run(["ip", "-n", net.node, "address", "add", "10.77.0.2/24", "dev", "eth0"], check=True)

    def simulate(*words: str) -> subprocess.CompletedProcess[str]:
        return net.on(net.node, *capsulekit(paths), "simulate", *words, check=False)

    with serving(net, paths, tmp_path):
        done = simulate("--nodes", "3")
        assert done.returncode == 4
        assert done.stderr.startswith(
            "All pretend nodes come from this machine's one address, whose boots the master limits"
        )
        assert "Failed: 3 with boot script: on this network the address that asks is another machine's" in done.stdout
    set_site(paths, check_mac=False)
    with serving(net, paths, tmp_path):
        done = simulate("--nodes", "64", "--polls", "0", "--json", "-q")
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["ready"] == 64
        assert record["limited"] > 0
    assert left(paths) == {}
