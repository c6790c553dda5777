"""What a node's plan says of NFS, and which layers are needed: on a real site with a hybrid capsule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from node_shell import LIB
from small_site import MAC
from split_capsule import NAME, split_site

from capsulekit.capsule.manifest import HYBRID
from capsulekit.errors import CapsulekitError
from provisioner.catalog import site_catalog
from provisioner.nfs.needed import Needed
from provisioner.registry.defaults import load_defaults
from provisioner.registry.registry import open_registry
from provisioner.server.desk import Desk
from provisioner.server.plan import make_plan
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """One node of the hybrid capsule."""
    paths = split_site(tmp_path)
    registry = open_registry(paths)
    registry.add_node(MAC, defaults=replace(load_defaults(paths), vnfs=NAME))
    yield Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))
    registry.close()


def line(desk: Desk, kind: str) -> list[str]:
    return [text.partition(" ")[2] for text in desk.plan(MAC).splitlines() if text.partition(" ")[0] == kind]


def digest(desk: Desk) -> str:
    return desk.store.digests(NAME)[HYBRID]


def test_a_node_of_a_hybrid_capsule_is_told_where_its_network_layer_is(desk: Desk) -> None:
    [kargs] = line(desk, "kargs")
    assert kargs.split()[0] == f"ck.hybrid=nfs4:127.0.0.1:/layers/{digest(desk)[:32]}"
    assert not [text for text in line(desk, "file") if HYBRID in text], "it is never sent"


def test_the_master_that_makes_the_plan_is_the_one_it_names(desk: Desk) -> None:
    desk.config = replace(desk.config, address="10.9.0.2/24")
    assert line(desk, "kargs")[0].startswith("ck.hybrid=nfs4:10.9.0.2:/layers/")


def test_what_the_admin_says_goes_over_it(desk: Desk) -> None:
    plan = desk.plan(MAC)
    node = desk.registry.node(MAC)
    assert node is not None
    text = make_plan(
        replace(node, kargs="ck.hybrid=nfs4:10.0.0.9:/mine"), desk.view_of(node), [], [], site_kargs="quiet", now=0,
        hybrid="10.0.0.1:/layers/x",
    )  # fmt: skip
    [kargs] = [one for one in text.splitlines() if one.startswith("kargs ")]
    assert kargs.index("/layers/x") < kargs.index("quiet") < kargs.index("/mine"), "the last one counts"
    assert plan.endswith("end\n")


def test_without_an_export_nothing_is_said(desk: Desk) -> None:
    desk.config = replace(desk.config, nfs="off")
    assert "ck.hybrid" not in desk.plan(MAC)
    assert line(desk, "nfs") == []


def test_a_capsule_without_a_hybrid_layer_gets_no_word_of_it(desk: Desk) -> None:
    node = desk.registry.node(MAC)
    assert node is not None
    view = replace(desk.view_of(node), hybrid="")
    desk._views[view.installed.identity] = view
    assert "ck.hybrid" not in desk.plan(MAC)


def test_transfer_method_nfs_is_one_line_that_stage_1_takes(desk: Desk, tmp_path: Path) -> None:
    import subprocess

    desk.config = replace(desk.config, transfer="nfs")
    assert line(desk, "nfs") == ["127.0.0.1:/blobs"]
    plan = tmp_path / "plan"
    plan.write_text(desk.plan(MAC))
    (tmp_path / "ck").mkdir()
    script = f". {LIB}/say.sh; . {LIB}/address.sh; . {LIB}/plan.sh; plan_check {plan} {MAC}"
    env = {"CK_RUN": str(tmp_path / "ck"), "PATH": "/usr/bin:/bin"}
    subprocess.run(["busybox", "sh", "-euc", script], check=True, env=env, timeout=30)


@pytest.mark.parametrize("export", ["10.0.0.1:/a b", "10.0.0.1:/a\nend", "10.0.0.1:/é", ""])
def test_a_plan_can_not_be_broken_by_an_export(desk: Desk, export: str) -> None:
    node = desk.registry.node(MAC)
    assert node is not None
    for words in ({"nfs": export}, {"hybrid": export}):
        if not export or (" " in export and "hybrid" in words):
            continue
        with pytest.raises(CapsulekitError, match="in a boot plan"):
            make_plan(node, desk.view_of(node), [], [], site_kargs="", now=0, **words)


# --- which layers are needed


def test_a_layer_is_needed_while_a_capsule_has_it_or_a_node_was_handed_it(desk: Desk) -> None:
    needed = Needed(desk.store, desk.registry)
    assert needed.layers(needed.generations()) == {digest(desk): NAME}
    identity = desk.store.get(NAME).identity
    sha256 = digest(desk)
    desk.registry.record_booted(MAC, json.dumps({"vnfs": NAME, "identity": identity}))
    assert (NAME, identity) in needed.generations()
    assert needed.layers([("gone-1.0.amd64", "0" * 64)]) == {}
    desk.store.blob(sha256).chmod(0o600)
    assert needed.layers(needed.generations()) == {}, "private files never travel by NFS"
    desk.store.blob(sha256).unlink()
    assert needed.layers(needed.generations()) == {}, "what the store lost can't be exported"


def test_what_was_handed_out_stays_needed_when_the_capsule_goes_on(desk: Desk) -> None:
    identity = desk.store.get(NAME).identity
    desk.registry.record_booted(MAC, json.dumps({"vnfs": NAME, "identity": identity}))
    with desk.registry.db.write() as con:
        con.execute("DELETE FROM capsules WHERE name = ?", (NAME,))
    needed = Needed(desk.store, desk.registry)
    assert list(needed.layers(needed.generations()).values()) == [NAME]
