"""Which address a node can be given for good: by `node set` and by every importer, through the real commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from capsulekit_cli import Done, cli

from capsulekit.sitepaths import SitePaths
from provisioner.flattoml import update_flat
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.registry import open_registry

MAC = "00:16:3E:00:00:00"
NETWORKS = """
[[network]]
address = "10.0.0.1/16"
gateway = "10.0.0.254"

[[network]]
address = "10.2.0.0/24"
relayed = true
range = "10.2.0.100-10.2.0.200"
"""
WRONG = {
    "192.0.2.1": "192.0.2.1 is no machine's address in any network of this site (10.0.0.0/16, 10.2.0.0/24)",
    "10.0.0.0": "10.0.0.0 is no machine's address",
    "10.0.255.255": "10.0.255.255 is no machine's address",
    "10.2.0.255": "10.2.0.255 is no machine's address",
    "fd00::5": "fd00::5 is no machine's address",
    "10.0.0.254": "10.0.0.254 is the gateway of 10.0.0.0/16",
    "10.0.252.1": "10.0.252.1 is in the pool 10.0.252.1-10.0.254.254, where any machine may have it already",
    "10.0.254.254": "is in the pool 10.0.252.1-10.0.254.254",
    "10.2.0.150": "10.2.0.150 is in the pool 10.2.0.100-10.2.0.200",
}
RIGHT = ("10.0.0.2", "10.0.251.255", "10.0.254.255", "10.0.255.0", "10.2.0.99", "10.2.0.201")


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = SitePaths(tmp_path / "etc", tmp_path / "var")
    init_site(made, InitRequest("ck0", "10.0.0.1/16", "10.0.252.1-10.0.254.254", "cluster.example"))
    (made.config / "networks.toml").write_text(NETWORKS)
    return made


def run(paths: SitePaths, *words: str | Path) -> Done:
    return cli(*words, "--config-dir", paths.config, "--state-dir", paths.state)


def address_of(paths: SitePaths) -> list[str]:
    registry = open_registry(paths)
    try:
        return [node.address for node in registry.nodes()]
    finally:
        registry.close()


def csv(folder: Path, address: str) -> Path:
    (folder / "nodes.csv").write_text(f"mac,name,address\n{MAC},n0000,{address}\n")
    return folder / "nodes.csv"


@pytest.mark.parametrize("address", sorted({**WRONG, "10.0.0.1": ""}))
def test_an_address_that_can_not_be_a_nodes_is_refused_in_one_line(
    paths: SitePaths, tmp_path: Path, address: str
) -> None:
    said = WRONG.get(address, "10.0.0.1 is no machine's address")
    assert run(paths, "node", "add", MAC, "n0000").status == 0
    done = run(paths, "node", "set", "address", address, "n0000")
    assert done.status == 1 and said in done.err.splitlines()[0], done.err
    assert address_of(paths) == [""]
    done = run(paths, "import", "csv", csv(tmp_path, address))
    master = "is this master's own"
    assert done.status == 1 and "nothing was imported" in done.err and (said in done.err or master in done.err)
    assert address_of(paths) == [""]


def test_an_import_of_new_nodes_with_such_an_address_adds_none(paths: SitePaths, tmp_path: Path) -> None:
    assert run(paths, "import", "csv", csv(tmp_path, "10.0.252.7")).status == 1
    (tmp_path / "ethers").write_text(f"{MAC} 10.0.252.7\n")
    assert run(paths, "import", "ethers", tmp_path / "ethers").status == 1
    assert address_of(paths) == []


@pytest.mark.parametrize("address", RIGHT)
def test_all_others_of_the_networks_can_be(paths: SitePaths, tmp_path: Path, address: str) -> None:
    done = run(paths, "import", "csv", csv(tmp_path, address))
    assert (done.status, address_of(paths)) == (0, [address]), done.err
    assert run(paths, "node", "set", "address", "", "n0000").status == 0
    assert run(paths, "node", "set", "address", address, "n0000").status == 0


def test_an_address_that_a_node_has_already_may_be_imported_again(paths: SitePaths, tmp_path: Path) -> None:
    assert run(paths, "import", "csv", csv(tmp_path, "10.0.1.7")).status == 0
    update_flat(paths.config / "site.toml", {"range_start": "10.0.1.1"})
    done = run(paths, "import", "csv", csv(tmp_path, "10.0.1.7"))
    assert (done.status, address_of(paths)) == (0, ["10.0.1.7"]), done.err


def test_where_another_server_gives_the_addresses_they_are_its_business(paths: SitePaths, tmp_path: Path) -> None:
    update_flat(paths.config / "site.toml", {"dhcp": "proxy"})
    assert run(paths, "import", "csv", csv(tmp_path, "192.0.2.1")).status == 0
    assert run(paths, "node", "set", "address", "192.0.2.2", "n0000").status == 0
    assert address_of(paths) == ["192.0.2.2"]
