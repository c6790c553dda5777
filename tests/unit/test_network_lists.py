"""Networks, fixed addresses, names, leases and upstream servers: what is made of files, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.hosts import HostsLine, NamesSource, plan_names, read_hosts
from provisioner.netboot.leases import FOREVER, FoundLease, LeaseFile, parse_leases
from provisioner.netboot.networks import Network, load_networks, require_network
from provisioner.netboot.upstream import upstream_servers
from provisioner.registry.model import Node
from provisioner.siteconf import SiteConfig, check_site

SITE = SiteConfig(interface="eth1", address="10.0.0.1/16", range_start="10.0.1.1", range_end="10.0.1.250")
NET = Network("site", IPv4Network("10.0.0.0/16"), "eth1", "10.0.0.1", "10.0.1.1", "10.0.1.250")
A, B, C = (f"52:54:00:00:00:0{n}" for n in (1, 2, 3))


def networks_of(tmp_path: Path, text: str, site: SiteConfig = SITE) -> tuple[Network, ...]:
    (tmp_path / "networks.toml").write_text(text)
    return load_networks(SitePaths(tmp_path, tmp_path), site)


# --- networks.toml


def test_without_the_file_there_is_the_sites_own_network(tmp_path: Path) -> None:
    assert load_networks(SitePaths(tmp_path, tmp_path), SITE) == (NET,)


def test_networks_come_in_the_files_order_after_the_sites_own(tmp_path: Path) -> None:
    found = networks_of(
        tmp_path,
        '[[network]]\naddress = "10.0.0.1/16"\ngateway = "10.0.255.254"\ndns = ["10.9.0.1"]\n'
        '[[network]]\nname = "io"\naddress = "10.1.0.1/24"\ninterface = "eth2"\nrange = "10.1.0.100 - 10.1.0.200"\n'
        '[[network]]\naddress = "10.2.0.0/24"\nrelayed = true\ngateway = "10.2.0.254"\n',
    )
    assert [net.name for net in found] == ["site", "io", "net3"]
    assert (found[0].gateway, found[0].dns, found[0].first) == ("10.0.255.254", ("10.9.0.1",), "10.0.1.1")
    assert (found[1].interface, found[1].address, found[1].first) == ("eth2", "10.1.0.1", "10.1.0.100")
    assert (found[2].interface, found[2].address, found[2].first) == ("", "", "")


WRONG = {
    "x = 1": "holds [[network]] tables and nothing else",
    "network = 3": "holds [[network]] tables and nothing else",
    "[[network": "networks.toml",
    '[[network]]\nadress = "10.1.0.1/24"': "network 1: unknown key 'adress'",
    "[[network]]\naddress = 10": "network 1: address must be text, not 10",
    '[[network]]\naddress = "10.1.0.1/24"\ndns = "10.1.0.2"': "network 1: dns must be a list of addresses",
    '[[network]]\naddress = "10.1.0.1/24"\ndns = [1]': "network 1: dns must be a list of addresses",
    '[[network]]\naddress = "10.1.0.1/24"\nrelayed = "yes"': "network 1: relayed must be true or false",
    "[[network]]": "network 1: address '' is not an IPv4 address with a prefix length",
    '[[network]]\naddress = "10.1.0.1"': "address '10.1.0.1' is not an IPv4 address with a prefix length",
    '[[network]]\naddress = "fd00::1/64"': "address 'fd00::1/64' is not an IPv4 address",
    '[[network]]\naddress = "10.1.0.1/31"\ninterface = "eth2"': "leaves no room for nodes",
    '[[network]]\naddress = "10.1.0.1/24"': "it needs an interface, or: relayed = true",
    '[[network]]\naddress = "10.1.0.1/24"\ninterface = "eth 2"': "is not the name of a network interface",
    '[[network]]\naddress = "10.1.0.1/24"\ninterface = "eth2"\nrelayed = true': "relayed, so it has no interface",
    '[[network]]\nname = "site"\naddress = "10.1.0.1/24"\nrelayed = true': "name 'site' is not",
    '[[network]]\nname = "a,b"\naddress = "10.1.0.1/24"\nrelayed = true': "name 'a,b' is not",
    '[[network]]\naddress = "10.1.0.1/24"\ninterface = "eth1"': "interface eth1 has the network 10.0.0.0/16 already",
    '[[network]]\naddress = "10.0.5.1/24"\ninterface = "eth2"': "10.0.5.0/24 overlaps 10.0.0.0/16 (site)",
    '[[network]]\naddress = "10.0.0.1/16"\nrange = "10.0.2.1-10.0.2.9"': "10.0.0.0/16 is the site's own",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\nrange = "10.1.0.9"': "range '10.1.0.9' is not START-END",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\nrange = "10.1.0.9-10.1.0.8"': "runs backwards",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\nrange = "10.1.0.9-10.2.0.8"': "range: 10.2.0.8 is not a",
    '[[network]]\naddress = "10.1.0.1/24"\ninterface = "eth2"\nrange = "10.1.0.1-10.1.0.8"': "holds the address 10.1",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\ngateway = "10.2.0.1"': "gateway 10.2.0.1 is not a host's",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\ngateway = "me"': "gateway: 'me' is not an IPv4 address",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\ndns = ["ns1"]': "dns: 'ns1' is not an IPv4 address",
    '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\n' * 2: "network 2: 10.1.0.0/24 overlaps 10.1.0.0/24 (net1)",
    '[[network]]\nname = "a"\naddress = "10.1.0.0/24"\nrelayed = true\n'
    '[[network]]\nname = "a"\naddress = "10.2.0.0/24"\nrelayed = true\n': "two networks called a",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_network_that_can_not_be_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(CapsulekitError) as caught:
        networks_of(tmp_path, text)
    assert WRONG[text] in caught.value.message
    assert "\n" not in caught.value.message


def test_an_ipv6_site_has_one_network(tmp_path: Path) -> None:
    six = SiteConfig(interface="e", address="fd00::1/64", range_start="fd00::100", range_end="fd00::200")
    with pytest.raises(CapsulekitError, match="further networks are IPv4's only"):
        networks_of(tmp_path, '[[network]]\naddress = "10.1.0.0/24"\nrelayed = true\n', six)


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.0", "10.0.255.255", "10.0.0.1", "fd00::1", "me"])
def test_a_fixed_address_must_be_a_machines_in_one_of_the_networks(address: str) -> None:
    assert require_network([NET], "10.0.7.7", "node n0") == NET
    with pytest.raises(CapsulekitError, match=f"^node n0: '?{address}'? is (no machine's|not an IP) address"):
        require_network([NET], address, "node n0")


# --- names


def plan(*nodes: Node, hosts: tuple[HostsLine, ...] = (), leases: tuple[FoundLease, ...] = (), gives: bool = True):  # type: ignore[no-untyped-def]
    return plan_names(NamesSource(nodes, (NET,), hosts, "/etc/hosts", leases, "master.example", gives))


def test_fixed_addresses_come_from_the_registry_and_then_from_the_hosts_file() -> None:
    nodes = (Node(A, "n0", "new", address="10.0.0.10"), Node(B, "n1", "new"), Node(C, "n2"))
    found = plan(*nodes, hosts=(HostsLine("10.0.0.99", ("n0",)), HostsLine("10.0.0.11", ("N1.new",))))
    assert found.dhcp == f"{A},10.0.0.10,n0\n{B},10.0.0.11,n1\n{C},n2\n".lower()
    assert found.dns == "10.0.0.1 master\n10.0.0.10 n0 n0.new\n10.0.0.11 n1 n1.new\n"
    assert found.problems == ()


def test_lines_of_one_name_are_all_told_and_the_first_that_can_be_is_the_nodes_address() -> None:
    hosts = (HostsLine("192.0.2.1", ("n0",)), HostsLine("10.0.0.10", ("n0",)), HostsLine("10.0.0.11", ("n0", "x")))
    found = plan(Node(A, "n0"), hosts=hosts)
    assert found.dhcp == f"{A},10.0.0.10,n0\n"
    assert found.dns == "10.0.0.1 master\n10.0.0.10 n0\n10.0.0.11 n0\n10.0.0.11 x\n192.0.2.1 n0\n"


def test_the_masters_name_is_taken_from_the_hosts_file_where_it_is_there() -> None:
    assert plan(hosts=(HostsLine("10.0.0.77", ("master",)),)).dns == "10.0.0.77 master\n"


def test_an_address_that_can_not_be_is_left_out_and_named_with_its_node() -> None:
    nodes = (Node(A, "n0", address="192.0.2.1"), Node(B, "n1", address="10.0.0.5"), Node(C, "n2"))
    found = plan(*nodes, hosts=(HostsLine("10.0.0.5", ("n2",)),))
    assert found.dhcp == f"{A},n0\n{B},10.0.0.5,n1\n{C},n2\n"
    assert [problem.partition(" (")[0] for problem in found.problems] == ["node n0", "node n2"]
    assert "192.0.2.1 is no machine's address in any network of this site (10.0.0.0/16)" in found.problems[0]
    assert f"by /etc/hosts: 10.0.0.5 is the address of {B} already" in found.problems[1]


def test_a_lease_of_a_machine_that_is_no_node_any_more_loses_its_name_or_a_nodes_address() -> None:
    gone, old = FoundLease(B, "10.0.1.7", "n1", 9.0), FoundLease(C, "10.0.0.10", "n0", 9.0)
    unnamed = FoundLease("52:54:00:00:00:09", "10.0.1.9", "", 9.0)
    found = plan(Node(A, "n0", address="10.0.0.10"), leases=(gone, old, unnamed))
    assert found.dhcp == f"{A},10.0.0.10,n0\n{B},host-525400000002\n"
    assert found.release == (old,)


def test_a_nodes_own_lease_on_anothers_address_is_waited_for_and_named() -> None:
    lease = FoundLease(B, "10.0.0.10", "n1", 9.0)
    found = plan(Node(A, "n0", address="10.0.0.10"), Node(B, "n1"), leases=(lease,))
    assert found.release == ()
    assert found.problems == (f"node n0 ({A}) can't have 10.0.0.10 yet: {B} has it until its lease ends",)


def test_where_another_server_gives_the_addresses_names_follow_what_nodes_report() -> None:
    found = plan(Node(A, "n0", ipaddr="172.16.0.9"), Node(B, "n1"), gives=False)
    assert (found.dhcp, found.dns) == ("", "10.0.0.1 master\n172.16.0.9 n0\n")


def test_a_hosts_file_is_read_without_what_means_this_machine_only(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(
        b"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 master\nfe80::1%eth0 x\nff02::1 all\n# 10.0.0.1 no\n"
        b"10.0.0.2\tone  one.site.test # two\n10.0.0.3\n10.0.0.400 bad\nx y\n10.0.0.4 ok a;b -c \xff dhcp-script=/sh\n"
        b"fd00:0::5 six\n"
    )
    assert read_hosts(path) == [
        HostsLine("10.0.0.2", ("one", "one.site.test")),
        HostsLine("10.0.0.4", ("ok",)),
        HostsLine("fd00::5", ("six",)),
    ]
    assert read_hosts(tmp_path / "none") == []
    with pytest.raises(CapsulekitError, match="Is a directory"):
        read_hosts(tmp_path)


# --- leases

LEASES = f"""1795419616 {A} 10.0.1.1 n0 *
0 {B} 10.0.1.2 * 01:52:54
1795419616 06-52:54:00:00:00:09 10.0.1.3 arcnet *
duid 00:01:00:01:2e:7f:00:11:52:54:00:00:00:09
1795419616 123456 fd00::10 n2 00:03:00:01:{C}
1795419616 123457 fd00::11 n3 00:04:aa:bb
x {A} 10.0.1.4 n0 *
1795419616 {A} 10.0.1.999 n0 *
1795419616 {C} 10.0.1.5 a`b *
"""


def test_leases_are_read_and_what_is_none_is_left_out() -> None:
    assert parse_leases(LEASES) == [
        FoundLease(A, "10.0.1.1", "n0", 1795419616.0),
        FoundLease(B, "10.0.1.2", "", FOREVER),
        FoundLease(C, "fd00::10", "n2", 1795419616.0),
        FoundLease(C, "10.0.1.5", "", 1795419616.0),
    ]
    assert parse_leases(f"1795419616 {A} 10.0.1.1 n0 *") == [], "a line without its end is not believed"


def test_a_file_seen_while_it_is_written_loses_no_lease(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    watch = LeaseFile(path)
    assert watch.look() == ([], [])
    one, two = f"9 {A} 10.0.1.1 n0 *\n", f"9 {B} 10.0.1.2 n1 *\n"
    path.write_text(one + two)
    assert [lease.mac for lease in watch.look()[0]] == [A, B]
    assert watch.look() == watch.look() == ([], [])
    path.write_text("")  # dnsmasq has emptied it and not written it yet
    assert watch.look() == ([], [])
    path.write_text(one)
    assert watch.look() == ([], [])
    assert [lease.mac for lease in watch.look()[1]] == [B], "two looks saw the same"
    assert watch.look() == ([], [])
    path.write_text(one.replace("n0", "n9"))
    assert [lease.hostname for lease in watch.look()[0]] == ["n9"]


# --- upstream


def test_upstream_servers_are_those_of_resolv_conf_that_are_not_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "search x\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver 10.9.0.1\nnameserver x\nnameserver\n"
    )
    assert upstream_servers(str(path), {"10.0.0.1"}) == ("10.9.0.1",)
    assert upstream_servers(str(tmp_path / "none"), ()) == ()
    path.write_text("nameserver 127.0.0.53\n")
    behind = tmp_path / "behind"
    behind.write_text("nameserver 10.9.0.2\n")
    assert upstream_servers(str(path), (), behind) == ("10.9.0.2",)


def test_upstream_servers_are_those_of_the_setting() -> None:
    assert upstream_servers("10.9.0.1 fd00::53 10.9.0.1", ()) == ("10.9.0.1", "fd00::53")
    assert upstream_servers("", ()) == ()
    with pytest.raises(CapsulekitError, match=r"dns_upstream names 'ns1\.example', which is no IP address"):
        upstream_servers("10.9.0.1 ns1.example", ())


# --- settings


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("dhcp", "maybe", "dhcp 'maybe' is none of own, proxy and off"),
        ("hosts_file", "/etc/ho\nsts", "control characters"),
        ("dns_upstream", "a\nb", "control characters"),
    ],
)
def test_a_setting_that_can_not_be_is_named(key: str, value: str, why: str) -> None:
    with pytest.raises(CapsulekitError, match=why):
        check_site(SiteConfig(**{**vars(SITE), key: value}), "site.toml")


def test_without_own_dhcp_no_range_is_needed() -> None:
    check_site(SiteConfig(**{**vars(SITE), "dhcp": "proxy", "range_start": "", "range_end": ""}), "site.toml")
