"""Who may ask under which MAC: machines in namespaces ask a running ``capsulekit serve``, some for themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from netns import Wire, bridge, join, namespace, program
from serving import Server, command, serving, set_site, until
from small_site import MAC, OTHER_MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner import pki
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry

ADDRESS, SIX = "10.77.0.1", "fd00:77::1"
FOREIGN = OTHER_MAC
BARE = ("dnsmasq", "-k", "-u", "root", "-C", "/dev/null", "-p", "0", "-x", "")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@dataclass
class Room:
    """A switch (with a machine in it) that joins a master, a node and a foreign machine, and the site of the master."""

    paths: SitePaths
    folder: Path
    switch: str
    node: Wire
    foreign: Wire
    server: Server

    def ask(self, who: Wire, mac: str, *options: str) -> str:
        """The boot script that a machine gets when it asks under this MAC."""
        return self.get(who.node, f"mac={mac}", *options)

    def get(self, where: str, query: str, *options: str) -> str:
        config = self.paths.config / "site.toml"
        host = f"[{SIX}]" if SIX in config.read_text() else ADDRESS
        words = ["curl", "-sS", "-g", *options, f"http://{host}:8009/v1/boot.ipxe?{query}"]
        return self.node.on(where, *words).stdout

    def ticket(self, who: Wire, mac: str, host: str = ADDRESS) -> str:
        """Status and text of the other way to a ticket."""
        ca = pki.ca_path(self.paths)
        words = ["curl", "-sS", "-g", "--cacert", str(ca), "-d", f"mac={mac}", "-w", "%{http_code}"]
        return who.on(who.node, *words, f"https://{host}:8010/v1/ticket").stdout

    def refused(self, reason: str) -> int:
        """How often that was counted."""
        host = f"[{SIX}]" if SIX in (self.paths.config / "site.toml").read_text() else ADDRESS
        text = self.node.on(self.node.master, "curl", "-sS", "-g", f"http://{host}:8009/metrics").stdout
        found = re.search(rf'^capsulekit_asks_refused_total{{reason="{reason}"}} (\d+)$', text, re.M)
        return int(found[1]) if found else 0


@contextmanager
def room(folder: Path, address: str = f"{ADDRESS}/24", networks: str = "", **settings: str) -> Iterator[Room]:
    folder.mkdir(exist_ok=True)
    paths = make_site(folder, interface="eth0", address=address)
    set_site(paths, hosts_file="", dns_upstream="", **settings)
    if networks:
        (paths.config / "networks.toml").write_text(networks)
    with ExitStack() as stack:
        switch, master, node, foreign = (stack.enter_context(namespace()) for _ in range(4))
        join(switch, "port1", master, "eth0")
        join(switch, "port2", node, "eth0", mac=MAC)
        join(switch, "port3", foreign, "eth0", mac=FOREIGN)
        bridge(switch, "br0", "port1", "port2", "port3")
        machine, other = Wire(master, node, MAC), Wire(master, foreign, FOREIGN)
        nodad = ["nodad"] if ":" in address else []
        machine.on(master, "ip", "address", "add", address, "dev", "eth0", *nodad)
        server = stack.enter_context(serving(machine, paths, folder))
        yield Room(paths, folder, switch, machine, other, server)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with room(tmp_path_factory.mktemp("room")) as made:
        registry = open_registry(made.paths)
        registry.add_node(MAC, "n0000", defaults=Defaults())
        registry.close()
        yield made


@pytest.fixture
def wired(shared: Room) -> Room:
    """The room with both machines having nothing but a lease of their own."""
    for machine in (shared.node, shared.foreign):
        assert machine.udhcpc(shared.folder)["ip"]
    return shared


def test_a_node_is_served_under_its_own_mac_both_ways(wired: Room) -> None:
    assert f"ck.mac={MAC} ck.ticket=" in wired.ask(wired.node, MAC)
    assert re.fullmatch(r"ticket [0-9a-f]{32}\n200", wired.ticket(wired.node, MAC))
    assert f"ck.mac={FOREIGN} ck.ticket=" in wired.ask(wired.foreign, FOREIGN)


def test_a_foreign_machine_that_asks_under_a_nodes_mac_is_refused_told_logged_and_counted(wired: Room) -> None:
    before = wired.refused("neighbour")
    told = wired.ask(wired.foreign, MAC)
    assert told.startswith("#!ipxe\n") and "ticket" not in told and "kernel" not in told
    assert "on this network the address that asks is another machine's" in told
    said = wired.ticket(wired.foreign, MAC)
    assert said == "on this network the address that asks is another machine's\n403"
    assert wired.refused("neighbour") == before + 2
    lines = [line for line in wired.server.log.read_text().splitlines() if " ask-refused " in line]
    assert re.search(rf"mac={MAC} addr=10\.77\.0\.1\d\d reason=neighbour seen={FOREIGN}$", lines[-1])
    # The node's own tickets are untouched by it.
    assert "ck.ticket=" in wired.ask(wired.node, MAC)


def test_a_foreign_machine_that_took_the_nodes_address_is_refused_too(wired: Room) -> None:
    address = wired.node.udhcpc(wired.folder)["ip"]
    wired.node.on(wired.node.node, "ip", "address", "flush", "dev", "eth0")
    wired.foreign.on(wired.foreign.node, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    # As a machine that takes an address says it.
    wired.foreign.on(wired.foreign.node, "busybox", "arping", "-U", "-c", "1", "-I", "eth0", address, check=False)
    assert "another machine's" in wired.ask(wired.foreign, MAC, "--interface", address)


def test_who_has_the_nodes_wire_but_not_its_lease_is_refused(wired: Room) -> None:
    address = wired.foreign.udhcpc(wired.folder)["ip"]
    wired.foreign.on(wired.foreign.node, "ip", "address", "flush", "dev", "eth0")
    wired.node.on(wired.node.node, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    wired.node.on(wired.node.node, "busybox", "arping", "-U", "-c", "1", "-I", "eth0", address, check=False)
    before = wired.refused("lease")
    assert "was given to another machine" in wired.ask(wired.node, MAC, "--interface", address)
    assert wired.refused("lease") == before + 1


def test_a_node_with_several_addresses_or_none_of_dhcps_is_served_from_each(wired: Room) -> None:
    wired.node.on(wired.node.node, "ip", "address", "add", "10.77.0.33/24", "dev", "eth0")
    assert "ck.ticket=" in wired.ask(wired.node, MAC, "--interface", "10.77.0.33")
    assert "ck.ticket=" in wired.ask(wired.node, MAC)
    assert "another machine's" in wired.ask(wired.foreign, MAC)


def test_a_node_whose_address_changes_is_served_before_and_after_it_takes_the_new_one(wired: Room) -> None:
    old = wired.node.udhcpc(wired.folder)["ip"]
    assert command(wired.node, wired.paths, "node", "set", "address", "10.77.0.50", "n0000").returncode == 0
    assert "ck.ticket=" in wired.ask(wired.node, MAC, "--interface", old)
    until(lambda: wired.node.udhcpc(wired.folder).get("ip") == "10.77.0.50")
    assert "ck.ticket=" in wired.ask(wired.node, MAC, "--interface", "10.77.0.50")
    assert command(wired.node, wired.paths, "node", "set", "address", "", "n0000").returncode == 0


def test_on_the_master_only_root_asks_for_nodes(wired: Room) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    url = f"http://{ADDRESS}:8009/v1/boot.ipxe?mac={MAC}"
    said = wired.node.on(wired.node.master, *nobody, "curl", "-sS", url).stdout
    assert "not by root" in said and "ticket" not in said
    assert "ck.ticket=" in wired.get(wired.node.master, f"mac={MAC}")


def test_a_site_may_leave_it_out(wired: Room) -> None:
    set_site(wired.paths, check_mac=False)
    assert command(wired.node, wired.paths, "serve", "reload").returncode == 0
    try:
        assert "ck.ticket=" in wired.ask(wired.foreign, MAC)
    finally:
        set_site(wired.paths, check_mac=True)
        assert command(wired.node, wired.paths, "serve", "reload").returncode == 0
    assert "another machine's" in wired.ask(wired.foreign, MAC)


def test_behind_a_router_the_lease_alone_tells(tmp_path: Path) -> None:
    beyond = '[[network]]\naddress = "10.79.0.0/24"\nrelayed = true\nrange = "10.79.0.100-10.79.0.110"\n'
    with room(tmp_path, networks=beyond) as made, namespace() as far, namespace() as routed:
        join(made.switch, "eth1", far, "eth0", address="10.79.0.254/24", mac="52:54:00:00:00:79")
        join(made.switch, "eth2", routed, "eth0", address="10.80.0.254/24", mac="52:54:00:00:00:80")
        on, machine = made.node.on, Wire(made.node.master, far, "52:54:00:00:00:79")
        on(made.switch, "ip", "address", "add", "10.77.0.9/24", "dev", "br0")
        on(made.switch, "sysctl", "-q", "net.ipv4.ip_forward=1")
        on(made.node.master, "ip", "route", "add", "10.79.0.0/24", "via", "10.77.0.9")
        on(made.node.master, "ip", "route", "add", "10.80.0.0/24", "via", "10.77.0.9")
        with program(made.switch, *BARE, f"--dhcp-relay=10.79.0.254,{ADDRESS}", log=tmp_path / "relay.log"):
            until(lambda: machine.udhcpc(tmp_path).get("ip", "").startswith("10.79.0.1"))
        on(far, "ip", "route", "add", "default", "via", "10.79.0.254")
        assert "ck.ticket=" in made.ask(machine, machine.mac)
        assert "was given to another machine" in made.ask(machine, MAC)
        # One that chose its address itself was given none.
        on(far, "ip", "address", "add", "10.79.0.20/24", "dev", "eth0")
        assert "was given to nobody" in made.ask(machine, machine.mac, "--interface", "10.79.0.20")
        # Of a network that is not ours nothing is known, and nothing compared.
        on(routed, "ip", "address", "add", "10.80.0.5/24", "dev", "eth0")
        on(routed, "ip", "route", "add", "default", "via", "10.80.0.254")
        assert "ck.ticket=" in made.get(routed, f"mac={MAC}")


def test_where_another_server_gives_the_addresses_the_wire_alone_tells(tmp_path: Path) -> None:
    with room(tmp_path, dhcp="off") as made:
        made.node.on(made.node.node, "ip", "address", "add", "10.77.0.105/24", "dev", "eth0")
        made.foreign.on(made.foreign.node, "ip", "address", "add", "10.77.0.106/24", "dev", "eth0")
        assert "ck.ticket=" in made.ask(made.node, MAC)
        assert "another machine's" in made.ask(made.foreign, MAC)
        set_site(made.paths, dhcp="proxy")
        assert command(made.node, made.paths, "serve", "reload").returncode == 0
        assert "ck.ticket=" in made.ask(made.node, MAC)
        assert "another machine's" in made.ask(made.foreign, MAC)


def test_a_site_of_ipv6_compares_the_wire(tmp_path: Path) -> None:
    with room(tmp_path, address=f"{SIX}/64") as made:

        def has_address(machine: Wire) -> bool:
            words = ["ip", "-6", "-brief", "address", "show", "dev", "eth0", "scope", "global", "-tentative"]
            return "fd00:77:" in machine.on(machine.node, *words).stdout

        until(lambda: has_address(made.node) and has_address(made.foreign))
        assert f"ck.mac={MAC} " in made.ask(made.node, MAC)
        assert made.ticket(made.node, MAC, f"[{SIX}]").endswith("200")
        assert "another machine's" in made.ask(made.foreign, MAC)
        assert made.ticket(made.foreign, MAC, f"[{SIX}]").endswith("403")
        assert made.refused("neighbour") == 2
