"""What the ``configure`` commands of the network manager write, and how the running server is found."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.configure import hosts_change, range_settings, resolver_change
from provisioner.netboot.networks import Network
from provisioner.registry.model import Node
from provisioner.server.record import record_file, reload_server, running_server, status_lines, write_record
from provisioner.siteconf import SiteConfig
from provisioner.sitefiles import write

SITE = SiteConfig(
    interface="eth1", address="10.0.0.1/24", range_start="10.0.0.52", range_end="10.0.0.60", domain="site.test"
)
NET = Network("site", IPv4Network("10.0.0.0/24"), "eth1", "10.0.0.1", "10.0.0.52", "10.0.0.60", "10.0.0.61")


def node(number: int, **more: str) -> Node:
    return Node(f"52:54:00:00:00:0{number}", f"n{number}", "new", **more)  # type: ignore[arg-type]


def lines(path: Path, *nodes: Node, first: str = "") -> list[str]:
    """The block after one run; a second one changes nothing."""
    change = hosts_change(SITE, [NET], nodes, path, first)
    if change:
        write(change)
    assert hosts_change(SITE, [NET], nodes, path, first) is None
    text = path.read_text().splitlines()
    marks = [number for number, line in enumerate(text) if " capsulekit: " in line]
    return text[marks[0] + 1 : marks[1]] if marks else []


def test_nodes_get_free_addresses_by_the_order_of_their_names_and_keep_them(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n10.0.0.50 printer\n10.0.0.9 n3\n")
    nodes = [node(4), node(2), node(1, address="10.0.0.49"), node(3), node(5)]
    assert lines(path, *nodes, first="10.0.0.49") == [
        "10.0.0.49 n1 n1.new n1.site.test",
        "10.0.0.51 n2 n2.new n2.site.test",  # 50 is the printer's
        "10.0.0.62 n4 n4.new n4.site.test",  # 52 to 60 are the pool, 61 is the gateway
        "10.0.0.63 n5 n5.new n5.site.test",
    ]
    assert path.read_text().startswith("127.0.0.1 localhost\n10.0.0.50 printer\n10.0.0.9 n3\n")
    # n2 is deleted, n0 is new: nobody else moves.
    left = [node(0), *(one for one in nodes if one.hostname != "n2")]
    assert [line.split()[:2] for line in lines(path, *left, first="10.0.0.49")] == [
        ["10.0.0.51", "n0"], ["10.0.0.49", "n1"], ["10.0.0.62", "n4"], ["10.0.0.63", "n5"],
    ]  # fmt: skip
    assert len(lines(path, *left)) == 4, "without --first those that have one keep it"


def test_without_a_fixed_address_there_is_nothing_to_write(tmp_path: Path) -> None:
    assert hosts_change(SITE, [NET], [node(1)], tmp_path / "hosts") is None


def test_a_network_without_room_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CapsulekitError, match=r"10\.0\.0\.0/24 has no more addresses free after 10\.0\.0\.253"):
        hosts_change(SITE, [NET], [node(1), node(2), node(3)], tmp_path / "hosts", "10.0.0.253")
    assert not (tmp_path / "hosts").exists()


@pytest.mark.parametrize(
    ("before", "local", "after"),
    [
        ("", True, "nameserver 127.0.0.1\n"),
        ("search x\nnameserver 9.9.9.9\n", True, "search x\nnameserver 127.0.0.1\nnameserver 9.9.9.9\n"),
        ("nameserver 9.9.9.9\nnameserver 127.0.0.1\n", True, "nameserver 127.0.0.1\nnameserver 9.9.9.9\n"),
        ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", True, None),
        ("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", False, "nameserver 9.9.9.9\n"),
        ("nameserver 9.9.9.9\nnameserver 127.0.0.1\n", False, "nameserver 9.9.9.9\n"),
        ("nameserver 9.9.9.9\n", False, None),
        ("# nothing\n", False, None),
    ],
)
def test_the_master_asks_itself_first_or_not_at_all(
    tmp_path: Path, before: str, local: bool, after: str | None
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(before)
    change = resolver_change(path, local)
    assert (change.new.decode() if change else None) == after


def test_a_resolv_conf_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "resolv.conf").symlink_to("stub")
    with pytest.raises(CapsulekitError, match="is a link to stub: another program writes that file"):
        resolver_change(tmp_path / "resolv.conf", True)


@pytest.mark.parametrize("text", ["", "10.0.0.1", "-", "10.0.0.1-", "-10.0.0.9"])
def test_a_range_has_two_ends(text: str) -> None:
    with pytest.raises(UsageError, match="is not START-END"):
        range_settings(text)


# --- the record

MORE: dict[str, Any] = {
    "dhcp": "own",
    "networks": [{"name": "far", "network": "10.2.0.0/24", "interface": "", "first": ""}],
    "problems": ["node n0 …"],
    "dnsmasq": {"pid": None, "restarts": 2, "died": 1.0, "last_words": "out of memory"},
    "resolver": {"pid": 9, "restarts": 0, "died": 0.0, "last_words": ""},
    "nfs": {
        "server": "ganesha",
        "exports": {"ab": "x-1.amd64"},
        "offered": 7,
        "transfer": "10.0.0.1:/blobs",
        "problems": ["nodes get no files by NFS: …"],
        "ganesha": {"pid": None, "restarts": 1, "died": 1.0, "last_words": "no memory"},
    },
    "reloads": 1,
    "reload_error": "no",
    "reload_hint": "",
    "reload_done": "",
}


def damaged(record: dict[str, Any]) -> str:
    return "{"


def other_start(record: dict[str, Any]) -> str:
    return json.dumps(record | {"started": record["started"] + 1})


def elsewhere(record: dict[str, Any]) -> str:
    return json.dumps(record | {"host": "another"})


def gone(record: dict[str, Any]) -> str:
    done = subprocess.Popen(["true"])
    done.wait()
    return json.dumps(record | {"pid": done.pid})


def odd(record: dict[str, Any]) -> str:
    return json.dumps(record | {"pid": "-1"})


def a_list(record: dict[str, Any]) -> str:
    return "[]"


@pytest.mark.parametrize("change", [other_start, gone, odd, a_list])
def test_a_record_without_its_process_is_no_server(tmp_path: Path, change: Callable[[dict[str, Any]], str]) -> None:
    paths = SitePaths(tmp_path, tmp_path)
    write_record(paths, 1.0, MORE)
    found = running_server(paths)
    assert found and found["pid"] == os.getpid()
    assert record_file(paths).stat().st_mode & 0o777 == 0o600
    record_file(paths).write_text(change(found))
    assert running_server(paths) is None
    with pytest.raises(CapsulekitError, match=r"^no server runs for this site$"):
        reload_server(paths)


@pytest.mark.parametrize(
    ("change", "why"), [(damaged, "serve.json is damaged"), (elsewhere, "served by the machine 'another'")]
)
def test_a_record_that_can_not_be_used_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], str], why: str
) -> None:
    paths = SitePaths(tmp_path, tmp_path)
    assert running_server(paths) is None
    write_record(paths, 1.0, MORE)
    record_file(paths).write_text(change(running_server(paths) or {}))
    with pytest.raises(CapsulekitError, match=why):
        running_server(paths)


def test_status_names_what_is_wrong(tmp_path: Path) -> None:
    text = "\n".join(status_lines({"pid": 7, "since": 1.0, "leases": 3, **MORE}))
    assert "Dnsmasq: NOT RUNNING, it will be started again; 2 restarts, last died 1970-01-01" in text
    assert ": out of memory\nDnsmasq for names: running, process 9\n" in text
    assert "\nDHCP: own, 3 leases\nNetwork: far 10.2.0.0/24 through a relay\n" in text
    assert "\nNFS: nfs-ganesha NOT RUNNING, it will be started again; 1 restart, last died 1970-01-01" in text
    assert ": no memory, 1 hybrid layer exported\nTransfer: by NFS from 10.0.0.1:/blobs, 7 files\n" in text
    assert "\nProblem: nodes get no files by NFS: …\n" in text
    assert text.endswith("Reload: refused: no\nProblem: node n0 …")
