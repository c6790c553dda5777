"""What each importer reads from files of the real form, and what it says of files that are none."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from capsulekit.errors import CapsulekitError, UsageError
from provisioner.importers import importer, kinds
from provisioner.importers._berkeley import read_pairs
from provisioner.importers._found import BIGGEST, Found

DATA = Path(__file__).parents[1] / "data" / "importers"
Said = dict[str, dict[str, str]]


def said(found: Found) -> Said:
    """MAC → name and settings."""
    return {machine.mac: {"name": machine.name, **dict(machine.settings)} for machine in found.machines}


def read(kind: str, *parts: str) -> Found:
    return importer(kind).read(DATA.joinpath(*parts))


def test_every_kind_is_found_by_its_file_and_says_what_it_reads() -> None:
    assert kinds() == ["csv", "dnsmasq-leases", "ethers", "hosts", "isc-dhcpd", "perceus", "warewulf"]
    assert all(len(importer(kind).ABOUT) > 20 for kind in kinds())
    with pytest.raises(UsageError, match="nothing is known of 'rocks'"):
        importer("rocks")


# --- ISC dhcpd


def test_hosts_of_dhcpd_are_read_however_they_are_written_and_nested() -> None:
    found = read("isc-dhcpd", "dhcpd.conf")
    assert said(found) == {
        "00:16:3E:00:00:00": {"name": "n0000", "address": "10.0.1.0"},
        "00:16:3E:00:00:01": {"name": "n0001", "address": "10.0.1.1"},
        "00:16:3E:00:00:02": {"name": "n0002"},
        "00:16:3E:00:00:10": {"name": "n0010", "address": "10.0.1.10", "groupname": "rack1"},
        "00:16:3E:00:00:11": {"name": "n0011", "address": "10.0.1.11", "groupname": "rack1"},
        "00:16:3E:00:00:12": {"name": "n0012", "groupname": "rack1"},
        "00:16:3E:00:00:13": {"name": "n0013"},
    }
    notes = "\n".join(found.notes)
    for text in (
        "dhcpd.conf:7: /etc/dhcp/more.conf is included there",
        "host n0011 has 2 fixed addresses: the first one is taken",
        "fixed-address n0012.cluster.example is a name; import the hosts file too",
        "host infiniband is left out: it has hardware infiniband",
        "host by-id is left out: it has no hardware address",
    ):
        assert text in notes
    assert "gone" not in notes


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("group {\n host a { hardware ethernet 00:16:3e:00:00:01; }\n", r":1: 'group' is never closed"),
        ("{" * 100_000, "is never closed"),
        ("}" * 3, ":1: a closing brace without an opening one"),
        ("host a { hardware ethernet 00:16:3e:00:00:01 }", "'hardware' is not ended by a semicolon"),
        ("host a { hardware ethernet 00:16:3e:00:00:01; }\nsubnet", ":2: 'subnet' is not ended by a semicolon"),
        ('host "a\n { hardware', ":1: a quote that is not closed on its line"),
        ("host { hardware ethernet 00:16:3e:00:00:01; }", "a host declaration has one name"),
        ("host a { hardware ethernet 00:16:3e:00:00; }", "is not a MAC address"),
        ("host $(reboot) { hardware ethernet 00:16:3e:00:00:01; }", "is not a node name"),
        ("host a;b { hardware ethernet 00:16:3e:00:00:01; }", "is never closed|one name|without an opening"),
        ("host a { hardware ethernet 01:00:5e:00:00:01; }", "multicast"),
        ("host a { hardware ethernet 00:16:3e:00:00:01; fixed-address 224.0.0.1; }", "cannot be the address"),
    ],
)
def test_a_dhcpd_file_that_is_broken_is_refused_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    source = tmp_path / "dhcpd.conf"
    source.write_text(text)
    if "a;b" in text:  # dhcpd reads it as two statements, the second a block without a meaning: no host, no node
        assert importer("isc-dhcpd").read(source).machines == ()
        return
    with pytest.raises(CapsulekitError) as refused:
        importer("isc-dhcpd").read(source)
    lines = "\n".join((refused.value.message, *refused.value.details, refused.value.hint or ""))
    assert re.search(why, lines), lines
    assert "nothing was imported" in lines


# --- lists


def test_an_ethers_file_of_perceus_is_read() -> None:
    assert said(read("ethers", "ethers")) == {
        "00:16:3E:00:00:00": {"name": "n0000"},
        "00:16:3E:00:00:01": {"name": "n0001.new"},
        "00:16:3E:00:00:02": {"name": "n0002"},
        "00:16:3E:00:00:03": {"name": "", "address": "10.0.1.3"},
    }


def test_a_hosts_file_gives_addresses_to_names_and_leaves_out_what_is_no_machine() -> None:
    found = read("hosts", "hosts")
    assert [(one.name, one.address) for one in found.addresses] == [
        ("master.cluster.example", "10.0.0.1"), ("master", "10.0.0.1"),
        ("n0000", "10.0.1.1"), ("n0000.cluster.example", "10.0.1.1"),
        ("n0001.new", "10.0.1.2"), ("n0001", "10.0.1.2"), ("printer", "10.0.1.3"),
    ]  # fmt: skip
    assert found.machines == ()


def test_leases_give_names_but_no_addresses() -> None:
    found = read("dnsmasq-leases", "dnsmasq.leases")
    assert said(found) == {
        "00:16:3E:00:00:00": {"name": "n0000"},
        "00:16:3E:00:00:01": {"name": ""},
        "00:16:3E:00:00:02": {"name": ""},
        "00:16:3E:00:00:03": {"name": "n0003"},
    }
    notes = "\n".join(found.notes)
    assert "'bad_name;' is no node's name" in notes
    assert "DHCPv6" in notes and "not the MAC of an Ethernet card" in notes


def test_a_table_is_read_by_the_names_of_its_columns() -> None:
    assert said(read("csv", "nodes.csv")) == {
        "00:16:3E:00:00:00": {
            "name": "n0000", "groupname": "rack1", "address": "10.0.1.0", "desc": 'first; the "old" one',
        },
        "00:16:3E:00:00:01": {"name": "n0001", "groupname": "rack1", "address": "10.0.1.1"},
        "00:16:3E:00:00:02": {"name": "", "groupname": "rack2", "desc": "spare"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("ethers", "00:16:3e:00:00:01\n", "not a MAC and a host name"),
        ("ethers", "00:16:3e:00:00:01 a b\n", "not a MAC and a host name"),
        ("ethers", "00:16:3e:00:00 a\n", "is not a MAC address"),
        ("ethers", "00:16:3e:00:00:01 a`reboot`\n", "is not a node name"),
        ("ethers", "00:16:3e:00:00:01 ../../etc\n", "is not a node name"),
        ("ethers", "00:16:3e:00:00:01 \x1b[31mred\n", "is not a node name"),
        ("hosts", "10.0.0.256 a\n", "is not an address"),
        ("hosts", "10.0.0.2\n", "an address without a name"),
        ("hosts", "10.0.0.2\n10.0.0.x a\n", "2 mistakes"),
        ("dnsmasq-leases", "1763817600 00:16:3e:00:00:00 10.0.252.17\n", "not a lease"),
        ("dnsmasq-leases", "soon 00:16:3e:00:00:00 10.0.252.17 a *\n", "not a lease"),
        ("csv", "name,group\nn0,a\n", "no column called mac"),
        ("csv", "mac,mac\n00:16:3e:00:00:01,x\n", "two columns are 'mac'"),
        ("csv", "mac,name\n00:16:3e:00:00:01\n", "1 cells under 2 columns"),
        ("csv", 'mac,name\n00:16:3e:00:00:01,"n0\n', "unexpected end of data|newline"),
        ("csv", "mac,self\n00:16:3e:00:00:01,n0\n", "not the name of a column"),
        ("csv", "mac,name\n00:16:3e:00:00:01,$(id)\n", "is not a node name"),
        ("csv", "", "^$"),
    ],
)
def test_a_line_that_is_none_is_named_with_its_number(tmp_path: Path, kind: str, text: str, why: str) -> None:
    source = tmp_path / "list"
    source.write_text(text)
    if not text:
        assert importer(kind).read(source) == Found()
        return
    with pytest.raises(CapsulekitError) as refused:
        importer(kind).read(source)
    lines = "\n".join((refused.value.message, *refused.value.details, refused.value.hint or ""))
    assert re.search(why, lines), lines
    assert f"{source}:" in lines and "\x1b" not in lines


def test_of_many_mistakes_the_first_twenty_are_named(tmp_path: Path) -> None:
    source = tmp_path / "ethers"
    source.write_text("x\n" * 5000)
    with pytest.raises(CapsulekitError, match="5000 mistakes") as refused:
        importer("ethers").read(source)
    assert refused.value.details[-1] == "and 4980 more"
    assert len(refused.value.details) == 21


@pytest.mark.parametrize("kind", kinds())
def test_what_is_no_text_is_refused_by_every_importer(tmp_path: Path, kind: str) -> None:
    name = "ethers" if kind == "perceus" else "list"
    binary, large, fifo = tmp_path / "b" / name, tmp_path / "l" / name, tmp_path / "f" / name
    for path in (binary, large, fifo):
        path.parent.mkdir()
    binary.write_bytes(bytes(range(256)) * 40)
    with large.open("wb") as file:
        file.truncate(BIGGEST + 1)
    os.mkfifo(fifo)
    for path, why in ((binary, "not a text file"), (large, "larger than"), (fifo, "not a regular file")):
        with pytest.raises(CapsulekitError, match=why):
            importer(kind).read(path)
    with pytest.raises(CapsulekitError, match="there is no file"):
        importer(kind).read(tmp_path / "missing" / name)


# --- Warewulf


def test_warewulf_4_nodes_get_what_their_profiles_say() -> None:
    found = read("warewulf", "warewulf4", "nodes.conf")
    assert said(found) == {
        # All-decimal MACs, which YAML 1.1 would read as numbers to the base of sixty.
        "52:54:00:12:34:56": {
            "name": "n0000.alpha", "vnfs": "rocky-9", "address": "10.0.1.1", "kargs": "quiet crashkernel=no",
        },
        "10:20:30:40:50:59": {
            "name": "n0001.alpha", "groupname": "gpu", "vnfs": "rocky-9", "address": "10.0.1.3", "desc": "with cards",
            "kargs": "quiet iommu=pt",
        },
        "00:16:3E:00:00:02": {
            "name": "n0002.beta", "groupname": "big", "vnfs": "rocky-9", "desc": "spare",
            "kargs": "quiet crashkernel=no",
        },
    }  # fmt: skip
    assert any("node n0003: left out: it has no hwaddr (discoverable)" in note for note in found.notes)


def test_warewulf_4_is_found_in_its_folder() -> None:
    assert read("warewulf", "warewulf4") == read("warewulf", "warewulf4", "nodes.conf")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nodes:\n  n0: [1, 2\n", "is not YAML"),
        ("nodes:\n  n0: text\n", "a table is expected"),
        ("nodes: 7\n", "a table is expected"),
        ("nodes:\n  n0:\n    profiles: [nope]\n", "there is no profile 'nope'"),
        ("nodes:\n  n0:\n    profiles: x\n", "not a list of names"),
        (
            "nodeprofiles:\n  a:\n    profiles: [b]\n  b:\n    profiles: [a]\nnodes:\n  n0:\n    profiles: [a]\n",
            "circle",
        ),
        (
            "nodes:\n  a;b:\n    network devices:\n      default:\n        hwaddr: 00:16:3e:00:00:01\n",
            "not a node name",
        ),
        ("nodes:\n  ? [a]\n  : b\n", "is not YAML|a table is expected"),
        ("nodes: " + "[" * 5000, "is not YAML|nested too deeply"),
        ("nodes: !!python/object/apply:os.system [id]\n", "a table is expected"),
    ],
)
def test_a_nodes_conf_that_is_none_is_refused(tmp_path: Path, text: str, why: str) -> None:
    source = tmp_path / "nodes.conf"
    source.write_text(text)
    with pytest.raises(CapsulekitError) as refused:
        importer("warewulf").read(source)
    lines = "\n".join((refused.value.message, *refused.value.details, refused.value.hint or ""))
    assert re.search(why, lines), lines


def test_yaml_that_names_one_table_a_million_times_costs_nothing(tmp_path: Path) -> None:
    """Aliases within aliases are never written out."""
    lines = ["x0: &x0 {network devices: {default: {hwaddr: '00:16:3e:00:00:01'}}}"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12)]
    source = tmp_path / "nodes.conf"
    source.write_text("\n".join([*lines, "nodes:", "  n0: *x0", ""]))
    assert list(said(importer("warewulf").read(source))) == ["00:16:3E:00:00:01"]
    assert yaml.__with_libyaml__


def test_warewulf_3_is_read_from_what_its_own_command_prints() -> None:
    found = read("warewulf", "warewulf3", "nodes.txt")
    assert said(found) == {
        "00:16:3E:00:00:00": {
            "name": "n0000", "groupname": "compute", "address": "10.0.1.1", "vnfs": "centos7",
            "kargs": "console=ttyS1,57600 quiet", "enabled": "1",
        },
        "00:16:3E:00:01:01": {"name": "n0001.beta", "groupname": "gpu", "address": "10.0.1.2", "enabled": "0"},
    }  # fmt: skip
    notes = "\n".join(found.notes)
    assert "node n0002 is left out: it has no HWADDR" in notes
    assert "n0001 is in gpu,compute: a node has one group here" in notes


def test_warewulf_2_is_read_from_its_folder_and_from_its_one_file() -> None:
    assert said(read("warewulf", "warewulf2", "nodes")) == {
        "00:16:3E:00:00:00": {"name": "n0000", "groupname": "compute", "vnfs": "default", "address": "10.0.1.1"},
        "00:16:3E:00:00:01": {"name": "n0001", "groupname": "compute", "enabled": "0"},
        "00:16:3E:00:00:02": {"name": "s0000", "groupname": "storage"},
    }
    assert said(read("warewulf", "warewulf2", "nodes-2.4.conf")) == {
        "00:16:3E:00:00:00": {"name": "n0000", "groupname": "compute", "vnfs": "default", "address": "10.0.1.1"},
        "00:16:3E:00:00:01": {"name": "n0001", "groupname": "storage", "vnfs": "default"},
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[n0]\nvnfs = a\n", "no key of it is a hardware address"),
        ("[n0]\nhwaddr = 00:16:3e:00:00:01\nmac = 00:16:3e:00:00:02\n", "2 keys of it are hardware addresses"),
        ("n0 {\nhwaddr = 00:16:3e:00:00:01\n", "never closed"),
        ("[n0]\n}\n", "without an opening one"),
        ("[n0]\nsomething\n", "not KEY = VALUE"),
        ("just words\n", "no list of Warewulf's nodes"),
        ("n0: eth0.HWADDR = 00:16:3e:00:00:01\nhalf a li", "not NODE: KEY = VALUE"),
    ],
)
def test_an_older_warewulf_s_file_that_is_broken_is_refused(tmp_path: Path, text: str, why: str) -> None:
    source = tmp_path / "nodes"
    source.write_text(text)
    with pytest.raises(CapsulekitError) as refused:
        importer("warewulf").read(source)
    assert why in "\n".join((refused.value.message, *refused.value.details, refused.value.hint or ""))


# --- Perceus

NODES = {
    "00:1A:64:00:00:01": {"name": "n0000", "groupname": "cluster", "enabled": "1"},
    "00:1A:64:00:00:02": {"name": "n0001", "groupname": "cluster", "enabled": "0", "desc": "rack 7, needs a new fan"},
    "00:1A:64:00:00:03": {"name": "n0007", "groupname": "storage", "enabled": "1"},
}
CAPSULE = "centos-5.4-1.stateless.x86_64"


def with_more(vnfs: bool) -> Said:
    more = {
        "00:1A:64:00:00:01": {"debug": "0"},
        "00:1A:64:00:00:02": {"debug": "1"},
        "00:1A:64:00:00:03": {"debug": "0"},
    }
    nodes = {mac: {**values, **more[mac]} for mac, values in NODES.items()}
    if vnfs:
        nodes["00:1A:64:00:00:01"]["vnfs"] = nodes["00:1A:64:00:00:02"]["vnfs"] = CAPSULE
    return nodes


@pytest.mark.parametrize("folder", ["state", "hashed"])
def test_the_database_of_perceus_is_read_as_btree_and_as_hash(folder: str) -> None:
    assert said(read("perceus", "perceus", folder)) == with_more(vnfs=True)


def test_a_dumped_database_of_perceus_is_read() -> None:
    assert said(read("perceus", "perceus", "dumped")) == NODES


def test_a_whole_perceus_master_is_read(tmp_path: Path) -> None:
    for part in ("etc", "state"):
        shutil.copytree(DATA / "perceus" / part, tmp_path / part)
    (tmp_path / "state" / "vnfs" / "centos").mkdir(parents=True)
    (tmp_path / "state" / "vnfs" / "centos" / "hosts").write_text("not looked at")
    (tmp_path / "centos-5.vnfs").write_bytes(b"BZh")
    (tmp_path / "etc" / "vnfs").symlink_to(tmp_path / "state" / "vnfs")
    found = importer("perceus").read(tmp_path)
    assert said(found) == with_more(vnfs=True)
    assert found.defaults == {"node_name": "n####", "group": "cluster", "enabled": True, "first_node": 0}
    assert found.files == (tmp_path / "centos-5.vnfs",)
    notes = "\n".join(found.notes)
    assert "the nodes were on eth1; here: capsulekit init --interface eth1" in notes
    assert "'Total Nodes' has no counterpart here" in notes
    assert "db pass" not in notes


def test_the_list_of_perceus_reload_is_read() -> None:
    assert said(read("perceus", "perceus", "nodes.conf")) == {
        "00:1A:64:00:00:01": {"name": "n0000", "groupname": "cluster", "vnfs": "centos-5", "address": "10.0.1.1"},
        "00:1A:64:00:00:02": {"name": "n0001", "groupname": "storage", "vnfs": "centos-5", "address": "10.0.1.2"},
    }


@pytest.mark.parametrize("folder", ["state/database/hostname.bdb", "hashed/hostname.db"])
def test_a_damaged_database_is_named_and_never_read_past_its_end(tmp_path: Path, folder: str) -> None:
    whole = (DATA / "perceus" / folder).read_bytes()
    path = tmp_path / "hostname.db"
    for at in (*range(16, 40), *range(4096, 4096 + 60), *range(len(whole) - 80, len(whole))):
        for value in (0, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                pairs = list(read_pairs(path))
            except CapsulekitError as error:
                assert str(path) in error.message
            else:
                assert len(pairs) <= 4096
    for size in (0, 10, 23, 24, 600, 4096, 5000, len(whole) - 1):
        path.write_bytes(whole[:size])
        try:
            list(read_pairs(path))
        except CapsulekitError as error:
            assert str(path) in error.message


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("hostname.dump", "HEADER=END\n 30\n", "not a whole dump"),
        ("hostname.dump", "VERSION=3\nHEADER=END\n zz\n 30\nDATA=END\n", "not a dump of a database"),
        ("hostname.dump", "VERSION=3\nformat=print\nHEADER=END\n a\\zz\n b\nDATA=END\n", "not a dump of a database"),
        ("hostname.db", "plain text\n", "neither a Berkeley DB"),
        ("group.dump", "VERSION=3\nHEADER=END\nDATA=END\n", "the table hostname is not beside it"),
        ("defaults.conf", "First Node = 1e9\n", "is not a number"),
        ("defaults.conf", "nothing\n", "no line of it is KEY = VALUE"),
        ("nodes.conf", "n0 00:16:3e:00:00:01 a b\n", "not five words"),
        ("other.conf", "", "there is nothing of Perceus"),
    ],
)
def test_a_file_of_perceus_that_is_broken_is_refused(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CapsulekitError) as refused:
        importer("perceus").read(tmp_path)
    assert why in "\n".join((refused.value.message, *refused.value.details, refused.value.hint or ""))
