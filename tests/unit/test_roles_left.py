"""A module is activated for a name. When the name goes, that is said: gap-filling hands it to another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asking_capsule import kit
from small_site import make_site

from capsulekit.sitepaths import SitePaths

NODE = "init/node/n0"


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    """n0 and n1 in group g, and module hostname activated for all, for n0 and for g."""
    paths = make_site(tmp_path)
    assert kit(paths, "module", "deactivate", "hostname").status == 0
    for number in range(2):
        assert kit(paths, "node", "add", f"52:54:00:00:00:0{number}", f"n{number}").status == 0
    assert kit(paths, "node", "set", "group", "g", "n0", "n1").status == 0
    assert kit(paths, "module", "activate", "hostname", "init/all", NODE, "init/group/g").status == 0
    return paths


def test_a_deleted_nodes_activations_are_named_with_the_way_out(paths: SitePaths) -> None:
    done = kit(paths, "node", "delete", "n0", "n1", "-y")
    assert done.status == 0 and done.err.count("WARNING") == 1
    assert f"'hostname' stays activated in {NODE}" in done.err
    assert f"capsulekit module deactivate hostname {NODE}" in done.err
    assert kit(paths, "module", "deactivate", "hostname", NODE).status == 0


def test_programs_are_told_too_and_a_dry_run_says_it_before(paths: SitePaths) -> None:
    left = [{"module": "hostname", "role": NODE}]
    for words in (("node", "delete", "n0", "--dry-run"), ("node", "set", "hostname", "m0", "n0", "--dry-run")):
        assert json.loads(kit(paths, *words, "--json").out)["roles_left"] == left
    assert kit(paths, "node", "list").out == "n0\nn1\n"
    assert json.loads(kit(paths, "node", "delete", "n0", "-y", "--json").out)["roles_left"] == left


def test_a_node_that_gets_another_name_leaves_its_activations_behind(paths: SitePaths) -> None:
    done = kit(paths, "node", "set", "hostname", "m0", "n0")
    assert done.status == 0 and f"stays activated in {NODE}" in done.err


def test_a_cluster_that_is_added_changes_no_role_of_the_host(paths: SitePaths) -> None:
    done = kit(paths, "node", "set", "hostname", "n0.east", "n0")
    assert (done.status, done.err) == (0, "")


def test_a_merged_groups_activations_are_named(paths: SitePaths) -> None:
    done = kit(paths, "group", "set", "groupname", "h", "g")
    assert done.status == 0 and "stays activated in init/group/g" in done.err and done.err.count("WARNING") == 1


def test_what_had_no_activation_goes_without_a_word(paths: SitePaths) -> None:
    done = kit(paths, "node", "delete", "n1", "-y")
    assert done.status == 0 and "WARNING" not in done.err
