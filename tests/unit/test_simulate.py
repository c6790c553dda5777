"""``capsulekit simulate`` without a master: its words, its figures, and the pretend nodes in the registry."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from capsulekit_cli import cli

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.hostkeys import files_for, node_dir
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.defaults import Defaults
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import Registry, open_registry
from provisioner.simulate import pretend
from provisioner.simulate.node import Master, PretendNode
from provisioner.simulate.tally import MOST_REASONS, OTHERS, Durations, Tally, lines
from provisioner.simulate.wire import Address, Answer, Failed

MAC = "52:54:00:12:34:56"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    made = SitePaths(tmp_path / "etc", tmp_path / "var")
    init_site(made, InitRequest("lo", "127.0.0.1/8", "127.0.0.100-127.0.0.110"))
    monkeypatch.setenv("CAPSULEKIT_CONFIG_DIR", str(made.config))
    monkeypatch.setenv("CAPSULEKIT_STATE_DIR", str(made.state))
    return made


@pytest.fixture
def registry(paths: SitePaths) -> Iterator[Registry]:
    made = open_registry(paths)
    made.add_capsule(InstalledCapsule("tiny-1.0.amd64", "ab" * 32, "0" * 16, "key", "1.0", "amd64", 1.0))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "say --nodes N, or --clean"),
        (["--nodes", "3", "--clean"], "say --nodes N, or --clean"),
        (["--nodes", "0"], "0 is not in the range"),
        (["--nodes", "65537"], "65537 is not in the range"),
        (["--nodes", "many"], "'many' is not a valid integer"),
        (["--nodes", "3", "--at-once", "0"], "0 is not in the range"),
        (["--nodes", "3", "--polls", "-1"], "-1 is not in the range"),
        (["--nodes", "3", "--interval", "nan"], "nan is not in the range"),
        (["--nodes", "3", "--interval", "-1"], "-1.0 is not in the range"),
        (["--nodes", "3", "--duration", "inf"], "inf is not in the range"),
        (["--nodes", "3", "--master", "https://127.0.0.1"], "is not http://ADDRESS[:PORT]"),
        (["--nodes", "3", "--master", "http://master.example"], "is not http://ADDRESS[:PORT]"),
        (["--nodes", "3", "--master", "http://127.0.0.1:99999"], "is not http://ADDRESS[:PORT]"),
        (["--nodes", "3", "--master", "http://root@127.0.0.1/"], "is not http://ADDRESS[:PORT]"),
        (["--nodes", "3", "--master", "http://127.0.0.1/x"], "is not http://ADDRESS[:PORT]"),
        (["--nodes", "3", "--master", "http://[::1"], "is not http://ADDRESS[:PORT]"),
    ],
)
def test_what_can_not_be_is_wrong_usage(registry: Registry, words: list[str], why: str) -> None:
    done = cli("simulate", *words)
    assert (done.status, done.out) == (2, "")
    assert why in done.err and done.err.count("ERROR: ") == 1
    assert registry.nodes() == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--vnfs", "nothing"], "no capsule 'nothing' is installed"),
        ([], "pretend nodes would wait"),
        (["--vnfs", "tiny", "--group", "a b", "--dry-run"], "'a b' is not a group name"),
        (["--vnfs", "tiny"], "no master answers at http://127.0.0.1:8009: connection refused"),
        (["--vnfs", "tiny", "--master", "http://127.0.0.1:1"], "no master answers at http://127.0.0.1:1: connection"),
    ],
)
def test_what_can_not_begin_adds_nothing(registry: Registry, words: list[str], why: str) -> None:
    done = cli("simulate", "--nodes", "3", *words)
    assert (done.status, done.out) == (1, "")
    assert why in done.err
    assert registry.nodes() == []


def test_a_dry_run_says_what_it_would_add_and_adds_nothing(registry: Registry) -> None:
    done = cli("simulate", "--nodes", "300", "--vnfs", "tiny", "--dry-run")
    assert (done.status, done.out) == (
        0,
        "300 pretend nodes would boot tiny-1.0.amd64, 06:53:49:4D:00:00 to 06:53:49:4D:01:2B\n",
    )
    assert registry.nodes() == [] and registry.changes() == []


def test_pretend_nodes_are_removed_and_nobody_elses(paths: SitePaths, registry: Registry) -> None:
    registry.add_node(MAC, defaults=Defaults())
    registry.set_nodes("desc", pretend.MARK, [MAC])  # the mark alone makes no pretend node
    own = pretend.mac_of(7000)
    registry.add_node(own, "of-the-admin", defaults=Defaults())  # nor does the MAC
    pretend.add(paths, registry, 5, "tiny-1.0.amd64", "")
    registry.replace_node(pretend.mac_of(4), "52:54:00:12:34:99")  # a machine took its place
    for mac in (pretend.mac_of(0), own):
        files_for(paths, mac)
    assert pretend.remove(paths, registry) == 4
    assert {node.nodeid for node in registry.nodes()} == {MAC, own, "52:54:00:12:34:99"}
    assert not node_dir(paths, pretend.mac_of(0)).parent.exists()
    assert node_dir(paths, own).exists()


def test_a_taken_mac_or_name_is_refused_and_stays(paths: SitePaths, registry: Registry) -> None:
    registry.add_node(pretend.mac_of(1), "mine", defaults=Defaults())
    with pytest.raises(CapsulekitError, match="registered already, as node 'mine'"):
        pretend.add(paths, registry, 5, "tiny-1.0.amd64", "")
    assert [node.hostname for node in registry.nodes()] == ["mine"]


def test_clean_asks_before_it_removes_and_says_how_many(paths: SitePaths, registry: Registry) -> None:
    assert cli("simulate", "--clean", "-y").out == "No pretend nodes are registered\n"
    pretend.add(paths, registry, 3, "tiny-1.0.amd64", "rack1")
    assert {node.groupname for node in registry.nodes()} == {"rack1"}
    assert cli("simulate", "--clean", "--dry-run").out == "3 pretend nodes would be removed\n"
    assert cli("simulate", "--clean", "-n").status == 1
    assert len(registry.nodes()) == 3
    assert cli("simulate", "--clean", "-y").out == "3 pretend nodes removed\n"
    assert registry.nodes() == []


def test_two_runs_at_once_are_refused(paths: SitePaths, registry: Registry) -> None:
    pretend.add(paths, registry, 1, "tiny-1.0.amd64", "")
    with pretend.alone(paths):
        for words in (["--nodes", "3", "--vnfs", "tiny"], ["--clean", "-y"]):
            done = cli("simulate", *words)
            assert done.status == 1 and "another simulate is running" in done.err
    assert len(registry.nodes()) == 1


async def _plan_of(answers: list[Answer], monkeypatch: pytest.MonkeyPatch) -> tuple[Tally, list[list[str]]]:
    """What a pretend node makes of the answers to its questions for a plan; it waits no second of real time."""
    waits: list[float] = []

    async def post(*_: object, **__: object) -> Answer:
        return answers.pop(0)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    tally = Tally()
    node = PretendNode(Master(Address("127.0.0.1", 1), Address("127.0.0.1", 1)), MAC, "", tally)
    monkeypatch.setattr(node.tls, "post", post)
    monkeypatch.setattr("provisioner.simulate.node.asyncio.sleep", sleep)
    plan = await node._plan()
    assert not answers and all(3 <= one <= 5 for one in waits) and len(waits) == tally.waited
    return tally, plan


async def test_a_pretend_node_of_a_mounted_capsule_waits_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Answer(202, {}, b"wait capsule-mounted tiny is mounted for editing by alice since 2026\n")
    tally, plan = await _plan_of([told, told, Answer(200, {}, b"plan 1\nend\n")], monkeypatch)
    assert (tally.waited, plan) == (2, [["plan", "1"], ["end"]])
    assert any(
        line.startswith("Told to wait for the capsule") and "2 times" in line for line in lines(tally.record(1, 1.0))
    )


async def test_it_waits_for_nothing_else_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="told to wait: disabled"):
        await _plan_of([Answer(202, {}, b"wait disabled\n")], monkeypatch)
    monkeypatch.setattr("provisioner.simulate.node.WAIT_SECONDS", -1.0)
    with pytest.raises(Failed, match="told to wait: capsule-mounted tiny"):
        await _plan_of([Answer(202, {}, b"wait capsule-mounted tiny\n")], monkeypatch)


def test_what_is_printed_of_durations_is_five_percent_too_high_at_most() -> None:
    took, durations = [random.Random(1).lognormvariate(-4, 2) for _ in range(5000)], Durations()
    for seconds in took:
        durations.add(seconds)
    took.sort()
    for share in (0.5, 0.99):
        true = took[int(share * len(took)) - 1]
        assert true <= durations.within(share) <= true * 1.0501
    assert (durations.count, durations.within(1.0)) == (5000, max(took))
    assert Durations().within(0.5) == 0.0


def test_figures_do_not_grow_with_the_reasons_that_nodes_fail_for() -> None:
    tally = Tally()
    for number in range(1000):
        tally.failed(f"reason {number}")
    record = tally.record(1000, 1.0)
    assert len(record["failures"]) == MOST_REASONS + 1
    assert record["failures"][OTHERS] == 1000 - MOST_REASONS
    assert record["failed"] == 1000
    assert f"Failed: {1000 - MOST_REASONS} with {OTHERS}" in lines(record)
