"""Two masters and the commands on one PostgreSQL: nothing is lost, either may be killed, and so may the database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from databases import PgServer
from netns import Wire, bridge, wire
from serving import Server, command, resolve, serving, set_site, until
from small_site import MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner import pki
from provisioner.registry.registry import Registry
from provisioner.siteconf import load_site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]
PRETEND = Path(__file__).parents[1] / "pretend_nodes.py"
RACER = "52:54:00:CC:00:"
SOURCE = "10.77.0.1"  # what both masters see the pretend nodes at: tickets are bound to it
ENOUGH = 60  # acknowledged reports after each event


class Master:
    """One master's site and its server, which can be killed and started again."""

    def __init__(self, net: Wire, paths: SitePaths, folder: Path) -> None:
        self.net, self.paths, self.folder = net, paths, folder
        self.site = load_site(paths)
        self._running = ExitStack()

    def start(self) -> Server:
        (self.folder / "ready").unlink(missing_ok=True)  # a killed one left it
        self.server = self._running.enter_context(serving(self.net, self.paths, self.folder))
        return self.server

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self._running.close()

    def stop(self) -> None:
        self._running.close()

    @property
    def log(self) -> str:
        return self.server.log.read_text()

    @property
    def urls(self) -> str:
        return f"{self.site.plain_url}={self.site.tls_url}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return command(self.net, self.paths, *words)

    def answers(self, status: str) -> None:
        """Wait until its /healthz does so."""
        words = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", f"{self.site.plain_url}/healthz"]
        until(lambda: self.net.on(self.net.master, *words, check=False).stdout == status)

    def says(self, words: str, times: int = 1) -> None:
        """Wait until its log has the words so often."""
        until(lambda: self.log.count(words) == times)


@pytest.fixture(scope="module")
def net() -> Iterator[Wire]:
    with wire("10.77.0.1/24", MAC) as made:
        # The second master is on the same machine, at another card.
        bridge(made.master, "eth1", address="10.78.0.1/24")
        yield made


@pytest.fixture(scope="module")
def address(postgres: PgServer) -> Iterator[str]:
    with postgres.database() as made:
        yield made


@pytest.fixture(scope="module")
def masters(net: Wire, address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Master, Master]]:
    """Both serving: the second made as docs/reference/registry.md says, of a copy of the first."""
    tmp_path = tmp_path_factory.mktemp("masters")
    one = make_site(tmp_path / "one", interface="eth0", address="10.77.0.1/24")
    set_site(one, hosts_file="", dns_upstream="")
    moved = command(net, one, "-y", "configure", "database", address)
    assert moved.returncode == 0, moved.stderr
    two = SitePaths(tmp_path / "two/config", tmp_path / "two/state")
    shutil.copytree(one.config, two.config)
    two.state.mkdir(mode=0o700)
    shutil.copytree(one.state / "stage1", two.state / "stage1")
    for shared in ("blobs", "modules", "nodes", "vnfs"):
        (one.state / shared).mkdir(exist_ok=True)
        (two.state / shared).symlink_to(one.state / shared)
    set_site(two, interface="eth1", address="10.78.0.1/24", range_start="10.78.0.100", range_end="10.78.0.110")
    set_site(two, http_port=8109, tls_port=8110, dhcp="off")
    both = Master(net, one, tmp_path / "one"), Master(net, two, tmp_path / "two")
    try:
        for master in both:
            master.start()
        yield both
    finally:
        for master in both:
            master.stop()


def pretend(masters: tuple[Master, Master], *what: str) -> list[str]:
    """The words that start pretend nodes at both masters."""
    ca = pki.ca_path(masters[0].paths)
    return [sys.executable, str(PRETEND), str(ca), SOURCE, *what, *(master.urls for master in masters)]


class Traffic:
    """Pretend nodes at both masters, of root on their machine, who may ask for any node.

    What was acknowledged is in a file.
    """

    def __init__(self, net: Wire, masters: tuple[Master, Master], folder: Path, count: int = 6) -> None:
        self.said, self.wrong = folder / "acknowledged", folder / "traffic.err"
        words = pretend(masters, str(count), "live")
        with self.said.open("w") as out, self.wrong.open("w") as err:
            self.process = subprocess.Popen(["ip", "netns", "exec", net.master, *words], stdout=out, stderr=err)

    def lines(self) -> list[list[str]]:
        assert self.process.poll() is None, self.wrong.read_text()
        return self.so_far()

    def so_far(self) -> list[list[str]]:
        return [line.split() for line in self.said.read_text().split("\n")[:-1]]

    def go_on(self, by: str = "01") -> None:
        """Wait for more reports that one of these masters acknowledges."""
        start = len(self.lines())
        until(lambda: sum(line[2] in by for line in self.lines()[start:]) > ENOUGH, 60)

    def end(self) -> list[list[str]]:
        self.process.kill()
        self.process.wait()
        return self.so_far()


def test_either_master_is_killed_in_the_middle_of_traffic_and_nothing_is_lost(
    net: Wire, masters: tuple[Master, Master], address: str, tmp_path: Path
) -> None:
    traffic = Traffic(net, masters, tmp_path)
    try:
        traffic.go_on("0")
        traffic.go_on("1")
        with ThreadPoolExecutor(4) as pool:
            words = [("node", "add", f"52:54:00:AA:00:{number:02X}", f"c{number}") for number in range(12)]
            done = [pool.submit(masters[number % 2].run, *line) for number, line in enumerate(words)]
            for place, master in enumerate(masters):
                master.kill()
                traffic.go_on(str(1 - place))
                master.start()
                traffic.go_on(str(place))
            results = [one.result() for one in done]
            assert [one.returncode for one in results] == [0] * 12, [one.stderr for one in results]
            # Many at once on the same rows, each of another value.
            keys = [("desc", "x"), ("kargs", "quiet"), ("groupname", "g1"), ("debug", "1"), ("boot", "local")] * 2
            sets = [(masters[n % 2], key, value, f"c{n % 12}") for n, (key, value) in enumerate(keys)]
            results = list(pool.map(lambda one: one[0].run("node", "set", *one[1:]), sets))
            assert [one.returncode for one in results] == [0] * len(sets), [one.stderr for one in results]
    finally:
        promised = traffic.end()
    registry = Registry(address)
    try:
        seen = {mac: {event.step for event in registry.events(mac)} for mac in {line[0] for line in promised}}
        assert [line for line in promised if line[1] not in seen[line[0]]] == []
        nodes = {node.hostname: node for node in registry.nodes()}
        assert {f"c{number}" for number in range(12)} < nodes.keys()
        assert len(seen) == 6, "every pretend node took part"
        for _, key, value, name in sets:
            assert str(getattr(nodes[name], key)) == value
        added = [change.hostname for change in registry.changes() if change.key == "added"]
        assert len(added) == len(set(added)) and set(added) >= nodes.keys(), "each has its line of history, once"
    finally:
        registry.close()
    # Nothing that a node or an admin could not have known about was said.
    for master in masters:
        assert "Traceback" not in master.log and "this is a bug" not in master.log


def test_a_ticket_of_one_master_opens_at_either_and_once(
    net: Wire, masters: tuple[Master, Master], tmp_path: Path
) -> None:
    words: list[str | Path] = [
        sys.executable,
        PRETEND,
        pki.ca_path(masters[0].paths),
        SOURCE,
        "20",
        "race",
        *[m.urls for m in masters],
    ]
    done = net.on(net.master, *words, check=False)
    assert done.stdout.splitlines() == ["200 403"] * 20, done.stderr
    refused = [line for m in masters for line in m.log.splitlines() if f" ticket-refused mac={RACER}" in line]
    assert len(refused) == 20
    assert all(line.endswith(" reason=used") for line in refused)


def test_what_a_command_changes_is_seen_by_both(net: Wire, masters: tuple[Master, Master]) -> None:
    one, two = masters
    servers = [master.site.ip for master in masters]

    def known(name: str) -> list[set[str]]:
        return [resolve(net, f"{name}.site.test", server) for server in servers]

    assert one.run("node", "add", "52:54:00:AB:00:01", "alpha").returncode == 0
    done = one.run("node", "set", "address", "10.77.0.61", "alpha")
    assert done.returncode == 0, done.stderr
    until(lambda: known("alpha") == [{"10.77.0.61"}] * 2)
    assert two.run("node", "list").stdout.count("alpha\n") == 1
    assert two.run("node", "set", "hostname", "beta", "alpha").returncode == 0
    until(lambda: known("beta") == [{"10.77.0.61"}] * 2)
    until(lambda: known("alpha") == [set(), set()])
    assert one.run("-y", "node", "delete", "beta").returncode == 0
    until(lambda: known("beta") == [set(), set()])


def test_both_masters_outlive_a_restart_of_the_database(
    net: Wire, masters: tuple[Master, Master], postgres: PgServer, tmp_path: Path
) -> None:
    traffic = Traffic(net, masters, tmp_path, count=2)
    try:
        traffic.go_on("0")
        traffic.go_on("1")
        postgres.stop()
        try:
            for master in masters:
                master.answers("503")
                master.says(" registry-lost place=postgresql://")
                done = master.run("node", "list")
                assert (done.returncode, done.stdout) == (1, "")
                first, *hint = done.stderr.splitlines()
                assert first.startswith("ERROR: registry postgresql://") and len(hint) <= 1, done.stderr
        finally:
            postgres.start()
        for master in masters:
            master.answers("200")
            assert master.log.count(" registry-lost ") == master.log.count(" registry-back ") == 1, master.log
        traffic.go_on("0")
        traffic.go_on("1")
        # So quick a restart that nobody notices anything but a connection that is gone.
        postgres.stop()
        postgres.start()
        traffic.go_on("01")
        for master in masters:
            master.says(" registry-back ", 2)
            assert "Traceback" not in master.log and "this is a bug" not in master.log
    finally:
        traffic.end()
    assert masters[0].run("node", "set", "desc", "after", "n*").returncode == 0
