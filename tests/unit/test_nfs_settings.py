"""The settings of NFS in site.toml, what a plan says because of them, and their names in the manual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.nfs import places
from provisioner.siteconf import SiteConfig, check_site

SITE = SiteConfig(interface="eth0", address="10.0.0.1/24", range_start="10.0.0.10", range_end="10.0.0.20")
PATHS = SitePaths(Path("/etc/capsulekit"), Path("/var/lib/capsulekit"))
SHA = "ab" * 32


@pytest.mark.parametrize(
    "good",
    [
        {"nfs": "ganesha"}, {"nfs": "kernel"}, {"nfs": "off"}, {"transfer": "nfs"},
        {"transfer": "nfs", "nfs": "off", "transfer_master": "10.0.0.5", "transfer_prefix": "/vol/perceus"},
        {"transfer_master": "fd00::5"}, {"transfer_prefix": "/a-b/c_d.e/@+"},
    ],
)  # fmt: skip
def test_what_is_meant_is_taken(good: dict[str, str]) -> None:
    check_site(replace(SITE, **good), "site.toml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"nfs": ""}, "nfs '' is none of ganesha, kernel and off"),
        ({"nfs": "Ganesha"}, "nfs 'Ganesha' is none of"),
        ({"transfer": "ftp"}, "transfer 'ftp' is neither http nor nfs"),
        ({"transfer": "nfs", "nfs": "off"}, 'transfer "nfs" needs a server'),
        ({"transfer": "nfs", "nfs": "off", "transfer_master": "10.0.0.1"}, 'transfer "nfs" needs a server'),
        ({"transfer_master": "master"}, "transfer_master 'master' is not an address"),
        ({"transfer_master": "10.0.0.256"}, "transfer_master '10.0.0.256' is not an address"),
        ({"transfer_master": "fe80::1%eth0"}, "transfer_master 'fe80::1%eth0' is not an address"),
        ({"transfer_master": "10.0.0.1,rw"}, "is not an address"),
        ({"transfer_prefix": "vol"}, "transfer_prefix 'vol' is not an absolute path of plain letters"),
        ({"transfer_prefix": "/"}, "is not an absolute path"),
        ({"transfer_prefix": "/a/"}, "is not an absolute path"),
        ({"transfer_prefix": "/a/../b"}, "is not an absolute path"),
        ({"transfer_prefix": "/a/."}, "is not an absolute path"),
        ({"transfer_prefix": "/a b"}, "is not an absolute path"),
        ({"transfer_prefix": "/a\nnfs 1.2.3.4:/x"}, "is not an absolute path"),
        ({"transfer_prefix": "/a:b"}, "is not an absolute path"),
    ],
)
def test_what_can_not_work_is_named(bad: dict[str, str], said: str) -> None:
    with pytest.raises(CapsulekitError) as error:
        check_site(replace(SITE, **bad), "site.toml")  # type: ignore[arg-type]
    assert str(error.value).startswith("site.toml: ") and said in str(error.value)


def test_nodes_are_told_this_masters_address_and_a_path_of_the_layer_alone() -> None:
    assert places.layer_export(PATHS, SITE, SHA) == f"10.0.0.1:/layers/{SHA[:32]}"
    kernel = replace(SITE, nfs="kernel")
    assert places.layer_export(PATHS, kernel, SHA) == f"10.0.0.1:/var/lib/capsulekit/nfs/layers/10.0.0.1/{SHA[:32]}"
    assert places.layer_export(PATHS, replace(SITE, nfs="off"), SHA) == ""
    six = replace(SITE, address="fd00::1/64")
    assert places.layer_export(PATHS, six, SHA) == f"[fd00::1]:/layers/{SHA[:32]}"


def test_where_public_files_are_by_nfs() -> None:
    def export(**more: str) -> str:
        return places.blobs_export(PATHS, replace(SITE, **more))  # type: ignore[arg-type]

    assert export() == ""
    assert export(transfer="nfs") == "10.0.0.1:/blobs"
    assert export(transfer="nfs", transfer_master="10.0.0.1") == "10.0.0.1:/blobs"
    assert export(transfer="nfs", nfs="kernel") == "10.0.0.1:/var/lib/capsulekit/nfs/blobs"
    other = {"transfer": "nfs", "transfer_master": "10.0.0.5", "nfs": "off"}
    assert export(**other) == "10.0.0.5:/var/lib/capsulekit/nfs/blobs"
    assert export(**other, transfer_prefix="/vol/perceus") == "10.0.0.5:/vol/perceus/nfs/blobs"
    assert export(transfer="nfs", transfer_master="fd00::5") == "[fd00::5]:/var/lib/capsulekit/nfs/blobs"


def test_the_servers_own_files_are_not_below_what_is_exported() -> None:
    assert not places.server_folder(PATHS, SITE).is_relative_to(places.public_folder(PATHS))
    assert places.blobs_folder(PATHS).is_relative_to(places.public_folder(PATHS))
