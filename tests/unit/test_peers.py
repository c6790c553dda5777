"""What the kernel says of the other end of a connection, and whose a leased address is."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.netboot.leases import LeaseFile
from provisioner.netboot.networks import Network
from provisioner.netboot.peers import Way, local_user, neighbour, way_to
from provisioner.registry.registry import Registry
from provisioner.server.askers import Askers, AskRefused
from provisioner.siteconf import SiteConfig

A, B = "52:54:00:00:00:0A", "52:54:00:00:00:0B"
SITE = SiteConfig(interface="eth1", address="10.0.0.1/16", range_start="10.0.1.1", range_end="10.0.1.250")
NET = Network("site", SITE.network, SITE.interface, SITE.ip, SITE.range_start, SITE.range_end)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_this_machine_and_has_no_neighbours(address: str) -> None:
    way = way_to(address)
    assert way.local
    assert neighbour(address, way.interface) == ""


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_socket_of_this_machine_has_its_user_until_it_is_closed(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        peer, port = client.getsockname()[:2]
        assert local_user(peer, port) == os.geteuid()
        client.close()
        assert local_user(peer, port) is None


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry.db")
    yield made
    made.close()


@pytest.fixture
def far(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Askers:
    """Whoever asks does so through a router: only leases tell."""
    monkeypatch.setattr("provisioner.netboot.peers.way_to", lambda _: Way(False, 0))
    return Askers(lambda: SITE, lambda: (NET,), LeaseFile(tmp_path / "leases"), registry)


def refused(who: Askers, mac: str, address: str) -> str:
    try:
        who.check(mac, address, 1)
    except AskRefused as error:
        assert "\n" not in error.message
        return error.reason
    return ""


def test_a_lease_is_believed_at_once_also_one_that_another_master_gave(
    far: Askers, registry: Registry, tmp_path: Path
) -> None:
    assert refused(far, A, "10.0.1.5") == "no-lease"
    (tmp_path / "leases").write_text(f"{int(time.time()) + 900} {A.lower()} 10.0.1.5 * *\n")
    assert (refused(far, A, "10.0.1.5"), refused(far, B, "10.0.1.5")) == ("", "lease")
    registry.record_lease(B, "10.0.1.6", "", time.time() + 900)
    assert (refused(far, B, "10.0.1.6"), refused(far, A, "10.0.1.6")) == ("", "lease")
    registry.record_lease(B, "10.0.1.7", "", time.time() - 1)
    assert refused(far, A, "10.0.1.7") == "no-lease", "that lease has ended"


def test_where_nothing_is_known_nothing_is_compared(far: Askers) -> None:
    assert refused(far, A, "192.0.2.9") == "", "no network of ours"
    assert refused(far, A, "fd00::9") == ""
    for other in (replace(SITE, dhcp="proxy"), replace(SITE, dhcp="off"), replace(SITE, check_mac=False)):
        far.config = lambda other=other: other  # type: ignore[misc]
        assert refused(far, A, "10.0.1.5") == ""
