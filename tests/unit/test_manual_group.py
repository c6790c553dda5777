"""The manual's transcripts of `perceus group`, and what it promises of groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from perceus_shell import Shell, shell_of


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """oldgroup1 (n0, n1), oldgroup2 (n2), third (n3)."""
    made = shell_of(tmp_path)
    made.add("n0", "n1", "n2", "n3")
    made.set("groupname", "oldgroup1", "n0", "n1")
    made.set("groupname", "oldgroup2", "n2")
    made.set("groupname", "third", "n3")
    return made


def test_group_set_groupname_merges(shell: Shell) -> None:
    shell("perceus group set groupname newgroup oldgroup1 oldgroup2")
    assert shell("perceus group list") == "newgroup\nthird\n"
    assert shell("perceus group nodelist newgroup") == "newgroup:\n   n0\n   n1\n   n2\n"


def test_a_group_may_be_merged_into_one_that_is_there(shell: Shell) -> None:
    shell("perceus group set groupname oldgroup1 oldgroup[1-2]")
    assert shell("perceus group nodelist oldgroup1") == "oldgroup1:\n   n0\n   n1\n   n2\n"


def test_a_whole_group_is_disabled(shell: Shell) -> None:
    shell("perceus group set enabled 0 oldgroup1")
    enabled = [line.split()[2] for line in shell("perceus node summary").splitlines()[1:]]
    assert enabled == ["no", "no", "yes", "yes"]


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        ("", ["oldgroup1", "oldgroup2", "third"]),
        ("third", ["third"]),
        ("@third", ["third"]),
        ("oldgroup[1-2]", ["oldgroup1", "oldgroup2"]),
        ("old*", ["oldgroup1", "oldgroup2"]),
        ("*!third", ["oldgroup1", "oldgroup2"]),
        ("third,oldgroup2", ["oldgroup2", "third"]),
        ("old*'&'*2", ["oldgroup2"]),
    ],
)
def test_selectors_name_groups_and_none_means_all(shell: Shell, words: str, groups: list[str]) -> None:
    assert json.loads(shell(f"perceus --json group list {words}")) == groups


@pytest.mark.parametrize(("words", "groups"), [("", ["oldgroup1", "oldgroup2", "third"]), ("@third", ["third"])])
def test_every_reading_verb_takes_them(shell: Shell, words: str, groups: list[str]) -> None:
    nodes = {"oldgroup1": ["n0", "n1"], "oldgroup2": ["n2"], "third": ["n3"]}
    assert json.loads(shell(f"perceus --json group nodelist {words}")) == {group: nodes[group] for group in groups}
    for verb in ("summary", "status", "show"):
        document = json.loads(shell(f"perceus --json group {verb} {words}"))
        assert [node["hostname"] for node in document] == [node for group in groups for node in nodes[group]]


def test_nodelist_indents_and_i_prints_macs(shell: Shell) -> None:
    assert shell("perceus group nodelist") == ("oldgroup1:\n   n0\n   n1\noldgroup2:\n   n2\nthird:\n   n3\n")
    assert shell("perceus -i group nodelist third") == "third:\n   02:00:00:00:00:03\n"


@pytest.mark.parametrize("words", ["enabled 0 third nope", "kargs quiet third nope", "group new third nope",
                                   "enabled maybe third", "colour red third", "group 'a b' third",
                                   "hostname x oldgroup1"])  # fmt: skip
def test_a_wrong_argument_changes_nothing(shell: Shell, words: str) -> None:
    before = shell("perceus group show")
    done = shell.run(f"perceus group set {words}")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("ERROR: ")
    assert shell("perceus group show") == before


@pytest.mark.parametrize("verb", ["list", "nodelist", "summary", "status", "show"])
def test_reading_prints_what_matched_and_exits_1(shell: Shell, verb: str) -> None:
    done = shell.run(f"perceus group {verb} third nope x*")
    assert done.returncode == 1 and "third" in done.stdout + "third" * (verb in ("summary", "status"))
    assert "oldgroup" not in done.stdout
    assert done.stderr == "ERROR: no group matches 'nope', 'x*'\n"


def test_kargs_are_the_groups_own_and_go_with_it(shell: Shell) -> None:
    shell("perceus group set kargs 'quiet nosmt' oldgroup1")
    assert "@oldgroup1:Kargs=quiet nosmt" in shell("perceus group show oldgroup1").splitlines()
    assert shell("perceus node show n0 | grep Kargs") == "n0:Kargs=\n"
    shell("perceus group set groupname renamed oldgroup1")
    assert shell.registry.group_kargs("renamed") == "quiet nosmt"
    assert shell.registry.group_kargs("oldgroup1") == ""


def test_kargs_that_a_merge_would_lose_are_named(shell: Shell) -> None:
    shell("perceus group set kargs one oldgroup1")
    shell("perceus group set kargs two oldgroup2")
    done = shell.run("perceus group set groupname new oldgroup1 oldgroup2")
    assert done.returncode == 0
    assert done.stderr == "WARNING: kernel arguments of the old groups are gone: 'one', 'two'\n"


def test_delete_lists_and_asks(shell: Shell) -> None:
    asked = shell.run("perceus group delete old*", stdin="")
    assert asked.returncode == 1 and "n0 n1 n2" in asked.stderr and "[yes/no]" in asked.stderr
    assert shell("perceus node list") == "n0\nn1\nn2\nn3\n"
    assert shell("perceus -y group delete old*") == "".join(f"Node 'n{i}' has been deleted\n" for i in range(3))
    assert shell("perceus node list") == "n3\n"


def test_dry_runs_change_nothing(shell: Shell) -> None:
    before = shell("perceus group show")
    for words in ("set kargs x third", "set group new old*", "set enabled 0 third", "delete third"):
        assert "ould be" in shell(f"perceus group {words} --dry-run")
    assert shell("perceus group show") == before


def test_an_empty_site_has_no_groups(tmp_path: Path) -> None:
    empty = shell_of(tmp_path)
    assert empty("perceus group list; perceus group nodelist; perceus group show") == ""
    assert empty.run("perceus group list x").returncode == 1
