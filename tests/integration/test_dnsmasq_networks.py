"""Several networks, and another DHCP server beside ours, with real clients, a real relay and a real second server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import Wire, bridge, join, namespace, program, wire
from serving import command, resolve, serving, set_site, until
from small_site import MAC, OTHER_MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry, open_registry

ADDRESS = "10.77.0.1"
BARE = ["dnsmasq", "-k", "-u", "root", "-C", "/dev/null", "-p", "0", "-x", ""]
ASK = Path(__file__).parents[1] / "dhcp4.py"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = make_site(tmp_path, interface="eth0", address=f"{ADDRESS}/24")
    set_site(made, hosts_file="", dns_upstream="")
    return made


@pytest.fixture
def registry(paths: SitePaths) -> Iterator[Registry]:
    made = open_registry(paths)
    yield made
    made.close()


def test_a_second_interface_is_a_second_network_with_its_own_addresses(
    paths: SitePaths, registry: Registry, tmp_path: Path
) -> None:
    (paths.config / "networks.toml").write_text(
        '[[network]]\nname = "io"\ninterface = "eth1"\naddress = "10.78.0.1/24"\nrange = "10.78.0.100-10.78.0.110"\n'
        'gateway = "10.78.0.254"\ndns = ["10.78.0.53"]\n'
    )
    registry.add_node(OTHER_MAC, "far", defaults=Defaults())
    registry.set_nodes("address", "10.78.0.20", [OTHER_MAC])
    with wire(f"{ADDRESS}/24", MAC) as net, namespace() as second:
        join(net.master, "eth1", second, "eth0", address="10.78.0.1/24", mac=OTHER_MAC)
        other = Wire(net.master, second, OTHER_MAC)
        with serving(net, paths, tmp_path) as server:
            assert net.udhcpc(tmp_path)["ip"].startswith("10.77.0.1")
            lease = other.udhcpc(tmp_path)
            assert (lease["ip"], lease["hostname"]) == ("10.78.0.20", "far")
            assert (lease["router"], lease["dns"]) == ("10.78.0.254", "10.78.0.53")
            assert (lease["boot_file"], lease["siaddr"]) == ("undionly.kpxe", "10.78.0.1")
            assert "#!ipxe" in other.on(second, "curl", "-sS", "tftp://10.78.0.1/chain.ipxe").stdout
            assert resolve(net, "far.site.test", "10.78.0.1", second) == {"10.78.0.20"}
            # A lease on this wire can be taken back too.
            until(lambda: len(registry.leases()) == 2)
            registry.replace_node(OTHER_MAC, "52:54:00:00:00:77")
            until(lambda: "10.78.0.20" not in (paths.state / "netboot" / "leases").read_text(), 5)
            status = json.loads(command(net, paths, "serve", "status", "--json").stdout)
            assert [one["network"] for one in status["networks"]] == ["10.77.0.0/24", "10.78.0.0/24"]
            assert len(server.dnsmasq()) == 1


def test_an_interface_that_is_not_named_is_not_answered_on(paths: SitePaths, tmp_path: Path) -> None:
    with wire(f"{ADDRESS}/24", MAC) as net, namespace() as second:
        join(net.master, "eth1", second, "eth0", address="10.78.0.1/24", mac=OTHER_MAC)
        with serving(net, paths, tmp_path):
            assert net.udhcpc(tmp_path)["ip"]
            assert Wire(net.master, second, OTHER_MAC).udhcpc(tmp_path, "-t", "2") == {}
            assert resolve(net, "x.site.test", "127.0.0.1") == set()


def test_machines_behind_a_relay_get_addresses_of_their_own_network(
    paths: SitePaths, registry: Registry, tmp_path: Path
) -> None:
    (paths.config / "networks.toml").write_text(
        '[[network]]\naddress = "10.79.0.0/24"\nrelayed = true\nrange = "10.79.0.100-10.79.0.110"\n'
    )
    registry.add_node(OTHER_MAC, "beyond", defaults=Defaults())
    with wire(f"{ADDRESS}/24", MAC) as net, namespace() as beyond:
        router = net.node
        join(router, "eth1", beyond, "eth0", address="10.79.0.254/24", mac=OTHER_MAC)
        net.on(router, "ip", "address", "add", "10.77.0.9/24", "dev", "eth0")
        net.on(router, "sysctl", "-q", "net.ipv4.ip_forward=1")
        net.on(net.master, "ip", "route", "add", "10.79.0.0/24", "via", "10.77.0.9")
        relay = [
            "dnsmasq",
            "-k",
            "-u",
            "root",
            "-C",
            "/dev/null",
            "-p",
            "0",
            f"--dhcp-relay=10.79.0.254,{ADDRESS}",
            "-x",
            "",
        ]
        behind = Wire(net.master, beyond, OTHER_MAC)
        with serving(net, paths, tmp_path), program(router, *relay, log=tmp_path / "relay.log"):
            found: dict[str, str] = {}

            def asked() -> bool:
                found.update(behind.udhcpc(tmp_path))
                return bool(found)

            until(asked)
            assert (found["hostname"], found["boot_file"], found["siaddr"]) == ("beyond", "undionly.kpxe", ADDRESS)
            assert found["ip"].startswith("10.79.0.1") and found["dns"] == ADDRESS
            assert found["router"] == "10.79.0.254"
            behind.on(beyond, "ip", "route", "add", "default", "via", "10.79.0.254")
            until(lambda: resolve(net, "beyond.site.test", ADDRESS, beyond) == {found["ip"]})
            # Its address for another machine: taken back through the wire that the relay is on.
            registry.replace_node(OTHER_MAC, "52:54:00:00:00:77")
            registry.set_nodes("address", found["ip"], ["52:54:00:00:00:77"])
            until(lambda: found["ip"] not in (paths.state / "netboot" / "leases").read_text(), 5)


@pytest.fixture
def shared(paths: SitePaths, tmp_path: Path) -> Iterator[Wire]:
    """A switch with our master, a node, and another DHCP server (10.77.0.2) that gives addresses only."""
    with namespace() as switch, namespace() as master, namespace() as node:
        join(switch, "port1", master, "eth0")
        join(switch, "port2", node, "eth0", mac=MAC)
        bridge(switch, "br0", "port1", "port2", address="10.77.0.2/24")
        net = Wire(master, node, MAC)
        net.on(master, "ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0")
        other = [
            "dnsmasq",
            "-k",
            "-u",
            "root",
            "-C",
            "/dev/null",
            "-p",
            "0",
            "-i",
            "br0",
            "-x",
            "",
            "-l",
            f"{tmp_path}/other",
        ]
        with program(switch, *other, "-F", "10.77.0.200,10.77.0.210,1h", log=tmp_path / "other.log"):
            until(lambda: "200" in net.udhcpc(tmp_path).get("ip", "") or net.udhcpc(tmp_path))
            yield net


def answers(net: Wire, kind: int, *more: str, count: int = 2) -> dict[str, dict[str, str]]:
    done = net.on(net.node, sys.executable, ASK, "eth0", MAC, str(kind), str(count), *more)
    return {answer["server"]: answer for answer in json.loads(done.stdout)}


def test_beside_another_dhcp_server_ours_gives_boot_files_and_no_address(
    shared: Wire, paths: SitePaths, registry: Registry, tmp_path: Path
) -> None:
    set_site(paths, dhcp="proxy")
    registry.add_node(MAC, "guest", defaults=Defaults())
    with serving(shared, paths, tmp_path) as server:
        bios = answers(shared, 0)
        assert set(bios) == {ADDRESS, "10.77.0.2"}
        assert bios["10.77.0.2"]["address"].startswith("10.77.0.2") and bios["10.77.0.2"]["file"] == ""
        ours = bios[ADDRESS]
        assert (ours["address"], ours["class"], ours["next"]) == ("0.0.0.0", "PXEClient", ADDRESS)
        assert ours["file"] == "undionly.kpxe"
        chained = answers(shared, 0, "--ipxe")[ADDRESS]
        assert (chained["file"], chained["next"]) == ("chain.ipxe", ADDRESS)
        assert answers(shared, 7, "--ipxe")[ADDRESS]["file"] == "chain.ipxe"
        uefi = answers(shared, 7)[ADDRESS]
        assert (uefi["file"], uefi["class"], uefi["next"]) == ("ipxe.efi", "PXEClient", ADDRESS)
        # A client that does not boot by PXE hears nothing of us.
        assert shared.udhcpc(tmp_path)["siaddr"] != ADDRESS
        assert "#!ipxe" in shared.on(shared.node, "curl", "-sS", f"tftp://{ADDRESS}/chain.ipxe").stdout
        # The other server knows the address; we know it once the node has told us.
        registry.record_state(MAC, "init", "10.77.0.205")
        until(lambda: resolve(shared, "guest.site.test", ADDRESS) == {"10.77.0.205"})
        assert registry.leases() == []
        assert len(server.dnsmasq()) == 1


def test_with_dhcp_off_the_other_server_is_alone_and_names_and_files_come_from_here(
    shared: Wire, paths: SitePaths, registry: Registry, tmp_path: Path
) -> None:
    set_site(paths, dhcp="off")
    registry.add_node(MAC, "guest", defaults=Defaults())
    registry.set_nodes("address", "10.77.0.33", [MAC])
    with serving(shared, paths, tmp_path):
        assert set(answers(shared, 0, count=0)) == {"10.77.0.2"}
        assert resolve(shared, "guest.site.test", ADDRESS) == {"10.77.0.33"}
        assert "#!ipxe" in shared.on(shared.node, "curl", "-sS", f"tftp://{ADDRESS}/chain.ipxe").stdout


def test_a_node_without_ipv4_has_its_fixed_address_when_it_names_its_mac(tmp_path: Path) -> None:
    paths = make_site(tmp_path, interface="eth0", address="fd00:77::1/64")
    registry = open_registry(paths)
    registry.add_node(MAC, "six", defaults=Defaults())
    registry.set_nodes("address", "fd00:77::50", [MAC])
    registry.close()
    ask = ASK.with_name("dhcp6.py")
    with wire("fd00:77::1/64", MAC) as net, serving(net, paths, tmp_path):

        def address() -> str:
            return net.on(net.node, "ip", "-6", "-brief", "address", "show", "dev", "eth0", "-tentative").stdout

        until(lambda: "fd00:77::5054:ff:fe12:3456/64" in address())
        assert net.on(net.node, sys.executable, ask, "eth0", MAC).stdout.split()[0] == "fd00:77::50"
        answer = net.on(net.node, "busybox", "nslookup", "-type=aaaa", "six.site.test", "fd00:77::1").stdout
        assert "fd00:77::50" in answer
