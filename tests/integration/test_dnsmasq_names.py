"""Addresses and names of nodes, as a real DHCP client and a real resolver in a namespace see them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from netns import Wire
from serving import Server, command, resolve, serving, set_site, until
from small_site import MAC, OTHER_MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry, open_registry

ADDRESS = "10.77.0.1"
DOMAIN = "site.test"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = make_site(tmp_path, interface="eth0", address=f"{ADDRESS}/24")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    set_site(made, hosts_file=str(tmp_path / "hosts"), dns_upstream="")
    return made


@pytest.fixture
def registry(paths: SitePaths) -> Iterator[Registry]:
    made = open_registry(paths)
    yield made
    made.close()


@pytest.fixture
def server(net: Wire, paths: SitePaths, tmp_path: Path) -> Iterator[Server]:
    with serving(net, paths, tmp_path) as made:
        yield made


def be(net: Wire, mac: str) -> None:
    """The machine on the node's side is another one from here on."""
    net.on(net.node, "ip", "link", "set", "eth0", "address", mac)


def told(net: Wire, name: str) -> set[str]:
    return resolve(net, f"{name}.{DOMAIN}", ADDRESS)


def soon(what: Callable[[], object]) -> float:
    """Wait until it is so, and print and return how many seconds that took: less than one where nothing else runs.

    The resolver is a process of its own here; on a busy machine it takes part of that second itself. What it takes at
    10 000 nodes is measured by `make bench ONLY=names`.
    """
    begin = time.monotonic()
    until(what, 10)
    took = time.monotonic() - begin
    print(f"after {took:.2f} s")
    return took


def typed(net: Wire, paths: SitePaths, *words: str) -> None:
    """A command that must work, by the program itself."""
    done = command(net, paths, "-y", *words)
    assert done.returncode == 0, done.stderr


def test_a_node_with_an_address_always_gets_it_and_its_name_resolves_before_it_ever_booted(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    [pid] = server.dnsmasq()
    node = registry.add_node(MAC, "fixed.rack", defaults=Defaults())
    registry.set_nodes("address", "10.77.0.50", [node.nodeid])
    soon(lambda: told(net, "fixed"))
    until(lambda: net.udhcpc(tmp_path).get("ip") == "10.77.0.50")
    assert resolve(net, f"fixed.{DOMAIN}", ADDRESS, net.node) == {"10.77.0.50"}
    assert resolve(net, "fixed.rack", ADDRESS) == {"10.77.0.50"}
    # The address is carried into the registry, for people who ask where the node is.
    until(lambda: [(lease.nodeid, lease.address) for lease in registry.leases()] == [(MAC, "10.77.0.50")])
    assert server.dnsmasq() == [pid]


def test_the_hosts_file_of_the_master_gives_nodes_their_addresses_and_round_robin_names(
    net: Wire, paths: SitePaths, registry: Registry, tmp_path: Path
) -> None:
    registry.add_node(MAC, "n0000.new", defaults=Defaults())
    (tmp_path / "hosts").write_text(
        "127.0.1.1 n0000\n10.77.0.60 n0000 # rack 1\n10.77.0.7 login\n10.77.0.8 login\n10.77.0.9 store nas\n"
    )
    with serving(net, paths, tmp_path) as server:
        [pid] = server.dnsmasq()
        assert net.udhcpc(tmp_path)["ip"] == "10.77.0.60"
        assert told(net, "n0000") == resolve(net, "n0000.new", ADDRESS) == {"10.77.0.60"}
        assert told(net, "login") == {"10.77.0.7", "10.77.0.8"}
        assert told(net, "nas") == {"10.77.0.9"}
        first = {
            net.on(net.node, "busybox", "nslookup", "-type=a", f"login.{DOMAIN}", ADDRESS).stdout for _ in range(4)
        }
        assert len(first) == 2, "the order of the two does not change"
        (tmp_path / "hosts").write_text("10.77.0.61 n0000\n")
        assert command(net, paths, "serve", "reload").returncode == 0
        until(lambda: told(net, "n0000") == {"10.77.0.61"}, 2)
        assert told(net, "login") == set()
        until(lambda: net.udhcpc(tmp_path).get("ip") == "10.77.0.61")
        assert server.dnsmasq() == [pid], "a list was changed: no restart is needed"


def test_a_new_machine_gets_an_address_of_the_pool_and_its_name_once_it_is_a_node(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    lease = net.udhcpc(tmp_path)
    assert 100 <= int(lease["ip"].rpartition(".")[2]) <= 110
    assert lease["hostname"] == ""
    until(lambda: [lease.hostname for lease in registry.leases()] == [""])
    registry.add_node(MAC, defaults=Defaults())  # n0000.new by the template
    soon(lambda: told(net, "n0000") == {lease["ip"]})
    until(lambda: resolve(net, "n0000.new", ADDRESS) == {lease["ip"]})
    until(lambda: [lease.hostname for lease in registry.leases()] == ["n0000"])


def test_a_renamed_node_has_its_new_name_within_a_second_and_the_old_one_is_gone(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    [pid] = server.dnsmasq()
    registry.add_node(MAC, "before", defaults=Defaults())
    until(lambda: net.udhcpc(tmp_path).get("hostname") == "before")
    ip = told(net, "before")
    assert ip

    def rename(old: str, new: str) -> float:
        typed(net, paths, "node", "set", "hostname", new, old)
        return soon(lambda: told(net, new) == ip and not told(net, old))

    # The best of three is what the server takes, whatever else the machine was doing during the others.
    took = [rename(old, new) for old, new in pairwise(("before", "after", "later", "last"))]
    assert min(took) < 1, took
    assert server.dnsmasq() == [pid]


def test_a_deleted_nodes_name_is_gone_within_a_second_though_its_lease_goes_on(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    [pid] = server.dnsmasq()
    registry.add_node(MAC, "doomed", defaults=Defaults())
    until(lambda: net.udhcpc(tmp_path).get("hostname") == "doomed")
    assert told(net, "doomed")
    typed(net, paths, "node", "delete", "doomed")
    soon(lambda: not told(net, "doomed"))
    assert MAC.lower() in (paths.state / "netboot" / "leases").read_text()
    # And the name is free for another machine at once.
    registry.add_node(OTHER_MAC, "doomed", defaults=Defaults())
    be(net, OTHER_MAC)
    until(lambda: net.udhcpc(tmp_path).get("hostname") == "doomed")
    assert server.dnsmasq() == [pid]


def test_a_replaced_nodes_address_and_name_go_to_the_new_machine_while_the_old_one_has_a_lease(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    registry.add_node(MAC, "n7", defaults=Defaults())
    registry.set_nodes("address", "10.77.0.70", [MAC])
    until(lambda: net.udhcpc(tmp_path).get("ip") == "10.77.0.70")
    until(lambda: registry.leases())
    typed(net, paths, "node", "add", OTHER_MAC, "spare")
    typed(net, paths, "node", "replace", "n7", "spare")
    soon(lambda: MAC.lower() not in (paths.state / "netboot" / "leases").read_text())
    be(net, OTHER_MAC)
    lease = net.udhcpc(tmp_path)
    assert (lease["ip"], lease["hostname"]) == ("10.77.0.70", "n7")
    assert told(net, "n7") == {"10.77.0.70"}


def test_a_changed_address_is_the_names_within_a_second_and_the_nodes_at_its_next_request(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    registry.add_node(MAC, "mover", defaults=Defaults())
    until(lambda: net.udhcpc(tmp_path).get("hostname") == "mover")
    registry.set_nodes("address", "10.77.0.80", [MAC])
    soon(lambda: told(net, "mover") == {"10.77.0.80"})
    until(lambda: net.udhcpc(tmp_path)["ip"] == "10.77.0.80")


def test_names_that_are_not_the_sites_own_are_asked_of_the_servers_above(
    net: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    net.on(net.node, "ip", "address", "add", "10.77.0.53/24", "dev", "eth0")
    above = ["dnsmasq", "-k", "-u", "root", "-C", "/dev/null", "-R", "-h", "-x", "", "--no-daemon"]
    fake = subprocess.Popen(
        ["ip", "netns", "exec", net.node, *above, "--address=/world.invalid/192.0.2.7"], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: resolve(net, "a.world.invalid", "10.77.0.53") == {"192.0.2.7"})
        resolv = tmp_path / "resolv.conf"
        resolv.write_text(f"search x\nnameserver 127.0.0.1\nnameserver {ADDRESS}\nnameserver 10.77.0.53\n")
        set_site(paths, dns_upstream=str(resolv))
        with serving(net, paths, tmp_path) as server:
            [pid] = server.dnsmasq()
            assert (paths.state / "netboot" / "upstream").read_text() == "server=10.77.0.53\n"
            assert resolve(net, "b.world.invalid", ADDRESS) == {"192.0.2.7"}
            # A name of the site that nobody has is nobody else's business.
            assert told(net, "nobody") == set()
            resolv.write_text("nameserver 127.0.0.1\n")
            until(lambda: resolve(net, "c.world.invalid", ADDRESS) == set(), 5)
            assert server.dnsmasq() == [pid]
    finally:
        fake.terminate()
        fake.wait()


HOSTILE = (
    "evil\ndhcp-script=/bin/sh",
    "a,b",
    "gateway",
    "wpad",
    "`id`",
    "x" * 60,
    "n0000",
    "../../etc/passwd",
    "ä",
)


def test_no_machine_chooses_its_own_name(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    registry.add_node(OTHER_MAC, "n0000", defaults=Defaults())
    registry.set_nodes("address", "10.77.0.90", [OTHER_MAC])
    folder = paths.state / "netboot"
    until(lambda: "n0000" in (folder / "dhcp-hosts").read_text())
    for name in HOSTILE:
        assert net.udhcpc(tmp_path, "-x", f"hostname:{name}", "-F", name)["ip"] != "10.77.0.90", name
        until(lambda: registry.leases())
        assert [lease.hostname for lease in registry.leases()] == [""], name
        written = "".join(path.read_text() for path in folder.iterdir() if path.is_file() and path.suffix != ".img")
        assert name == "n0000" or name not in written, name
        assert told(net, "n0000") == {"10.77.0.90"}
    assert len(server.dnsmasq()) == 1


def test_an_address_outside_every_network_is_named_and_keeps_nobody_else_waiting(
    net: Wire, paths: SitePaths, registry: Registry, server: Server, tmp_path: Path
) -> None:
    registry.add_node(OTHER_MAC, "lost", defaults=Defaults())
    (tmp_path / "hosts").write_text("192.0.2.9 lost\n10.77.0.91 found\n")
    registry.add_node(MAC, "found", defaults=Defaults())
    said = f"node lost ({OTHER_MAC}) by {tmp_path / 'hosts'}: 192.0.2.9 is no machine's address in any network of this"
    until(lambda: said in server.log.read_text())
    until(lambda: net.udhcpc(tmp_path).get("ip") == "10.77.0.91")
    until(lambda: said in command(net, paths, "serve", "status").stdout)
