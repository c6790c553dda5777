"""`node console-log` and `node drift`: what a node reported, who changed it, and whether a reboot would change it."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from capsulekit_cli import Done, cli
from small_site import CAPSULE, MAC, OTHER_MAC, make_site

from capsulekit.sitepaths import SitePaths
from provisioner.catalog import site_catalog
from provisioner.drift import Difference, differences, outline
from provisioner.registry.defaults import load_defaults
from provisioner.registry.registry import Registry, open_registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    made = make_site(tmp_path)
    monkeypatch.setenv("CAPSULEKIT_CONFIG_DIR", str(made.config))
    monkeypatch.setenv("CAPSULEKIT_STATE_DIR", str(made.state))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return made


@pytest.fixture
def registry(paths: SitePaths) -> Registry:
    """Two nodes that boot the small capsule."""
    made = open_registry(paths)
    made.add_nodes([(MAC, None), (OTHER_MAC, None)], defaults=load_defaults(paths))
    return made


@pytest.fixture
def desk(paths: SitePaths, registry: Registry) -> Desk:
    return Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))


def lines(done: Done) -> list[str]:
    assert (done.status, done.err) == (0, ""), done
    return done.out.splitlines()


# --- console-log


@pytest.fixture
def booted(registry: Registry) -> Registry:
    """n0000 booted twice: well, then not; between the two its kernel arguments were set."""
    now = time.time()
    registry.record_state(MAC, "init", "127.0.0.1", now=now - 200)
    registry.record_step(MAC, "layers", "start", now=now - 199)
    registry.record_step(MAC, "layers", "ok", 3.21, mem_used_kb=102400, now=now - 196)
    registry.record_state(MAC, "ready", "127.0.0.1", now=now - 170)
    assert cli("node", "set", "kargs", "quiet", "n0000").status == 0
    registry.record_state(MAC, "init", "127.0.0.1", now=now + 10)
    registry.record_step(MAC, "drivers", "start", now=now + 11)
    registry.record_step(MAC, "layers", "start", now=now + 12)
    registry.record_step(MAC, "layers", "failed", 1.0, "rootfs: digest differs", now=now + 13)
    return registry


def test_the_newest_boot_is_told_with_its_steps_errors_and_what_never_ended(booted: Registry) -> None:
    stamp = r"  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    wanted = [
        r"n0000: boot of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, init",
        rf"{stamp}state init",
        rf"{stamp}step drivers not finished",
        rf"{stamp}step layers failed in 1\.0 s: rootfs: digest differs",
    ]
    told = lines(cli("node", "console-log", "n0000"))
    assert len(told) == len(wanted)
    for line, pattern in zip(told, wanted, strict=True):
        assert re.fullmatch(pattern, line), line


def test_all_of_it_says_who_changed_what_between_the_boots(booted: Registry) -> None:
    told = lines(cli("node", "console-log", "--all", "n0000"))
    found = "\n".join(told)
    assert "step layers ok in 3.2 s (100 MiB used)" in found
    assert re.search(r"state ready \+30 s", found)
    change = next(n for n, line in enumerate(told) if "change kargs: '' → 'quiet'" in line)
    heads = [n for n, line in enumerate(told) if line.startswith("n0000: ")]
    assert told[change].endswith("(node set)") and " by " in told[change]
    assert heads[-2] < change < heads[-1], "it stands with the boot it came after"


def test_boots_says_how_many_and_json_is_the_same(booted: Registry) -> None:
    assert (
        sum(line.startswith("n0000: boot of") for line in lines(cli("node", "console-log", "--boots", "2", "*0"))) == 2
    )
    document = json.loads(cli("node", "console-log", "--json", "--all", "n0000").out)
    assert [boot["outcome"] for boot in document[0]["boots"]][-2:] == ["ready", "init"]
    assert any(change["key"] == "kargs" for boot in document[0]["boots"] for change in boot["changes"])


def test_a_node_that_said_nothing_has_its_changes_only(registry: Registry) -> None:
    told = lines(cli("node", "console-log", "n0001"))
    assert told[0] == "n0001: before the first boot that is kept" and "change added" in told[1]


def test_an_unknown_node_is_named_after_the_known(registry: Registry) -> None:
    done = cli("node", "console-log", "n0000", "nope")
    assert done.status == 1 and "n0000: " in done.out and done.err == "ERROR: no node matches 'nope'\n"


def test_what_a_node_sends_reaches_the_terminal_harmless(registry: Registry) -> None:
    registry.record_state(MAC, "init", "127.0.0.1")
    registry.record_step(MAC, "evil\x1b[2J\nERROR: x", "failed", 1.0, "a\x07\x1b]0;b\x07\nc")
    told = cli("node", "console-log", "n0000").out
    assert all(char == "\n" or char.isprintable() for char in told)
    assert sum("ERROR" in line for line in told.splitlines()) == 1


# --- drift


def test_a_node_that_booted_as_it_would_now_has_no_drift(desk: Desk) -> None:
    desk.hand_out(MAC)
    assert lines(cli("node", "drift", "n0000")) == []
    assert lines(cli("node", "drift", "-v", "n0000")) == ["n0000: as booted"]
    assert json.loads(cli("--json", "node", "drift", "n0000").out)[0]["drift"] is False


def test_a_node_that_never_booted_says_so(registry: Registry) -> None:
    assert lines(cli("node", "drift", "n0001")) == ["n0001: no boot is known of"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("node", "set", "kargs", "nosmt", "n0000"), r"kargs: (.*) → (.*) ?nosmt"),
        (("group", "set", "kargs", "mitigations=off", "cluster"), r"kargs: (.*) → (.*)mitigations=off"),
        (("node", "set", "hostname", "first", "n0000"), r"hostname: n0000 → first"),
        (("node", "set", "group", "blue", "n0000"), r"group: cluster → blue"),
        (("node", "set", "debug", "2", "n0000"), r"debug: 0 → 2"),
        (("module", "deactivate", "hostname"), r"module hostname: [0-9a-f]{16} → \(none\)"),
        (("module", "activate", "sysctl", "init/all"), r"module sysctl: \(none\) → [0-9a-f]{16}"),
        (("node", "set", "enabled", "no", "n0000"), r"would wait after a reboot: disabled"),
        (("node", "set", "vnfs", "", "n0000"), r"would wait after a reboot: no-capsule"),
    ],
)
def test_each_thing_that_a_reboot_would_change_is_named(desk: Desk, words: tuple[str, ...], told: str) -> None:
    desk.hand_out(MAC)
    assert cli(*words).status == 0
    got = lines(cli("-i", "node", "drift", MAC))
    assert len(got) == 1 and re.fullmatch(rf"(n0000|first): {told}", got[0]), got


def test_what_no_reboot_would_change_is_no_drift(desk: Desk) -> None:
    desk.hand_out(MAC)
    assert cli("node", "set", "desc", "in the corner", "n0000").status == 0
    assert lines(cli("node", "drift", "n0000")) == []


def test_drift_changes_nothing_and_is_forgotten_with_the_node(desk: Desk, registry: Registry) -> None:
    desk.hand_out(MAC)
    before = registry.booted()
    assert cli("node", "drift").status == 0
    assert registry.booted() == before
    assert cli("-y", "node", "delete", "n0000").status == 0
    assert registry.booted() == {}


def test_a_replaced_nodes_drift_is_that_of_the_new_machine(desk: Desk, registry: Registry) -> None:
    desk.hand_out(MAC)
    desk.hand_out(OTHER_MAC)
    assert cli("-y", "node", "replace", "n0000", "n0001").status == 0
    assert lines(cli("node", "drift"))[0] == "n0000: hostname: n0001 → n0000"
    assert set(registry.booted()) == {OTHER_MAC}


def test_an_outline_holds_no_more_than_a_reboot_could_change(desk: Desk) -> None:
    plan = desk.plan(MAC)
    kept = json.loads(outline(plan))
    assert set(kept) == {"hostname", "cluster", "group", "vnfs", "identity", "kargs", "debug", "modules"}
    assert kept["vnfs"] == CAPSULE and set(kept["modules"]) == {"hostname", "sshkeys"}
    assert outline(plan) == outline(plan.replace("\ntime ", "\ntime 1"))


def test_differences_are_those_of_two_outlines() -> None:
    old = "hostname n0\nvnfs a\nidentity 1\nkargs quiet\nscript init 20 20-x x 00 1 required\nend\n"
    new = "hostname n0\nvnfs b\nidentity 2\nkargs\ndata y f 11 1\nend\n"
    found = differences(outline(old), outline(new))
    assert [one.what for one in found] == ["vnfs", "identity", "kargs", "module x", "module y"]
    assert found[0] == Difference("vnfs", "a", "b") and str(found[2]) == "kargs: quiet → (none)"
    assert differences(outline(old), outline(old)) == ()
