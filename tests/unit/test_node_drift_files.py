"""`node drift` by content: from lists that nodes sent, against a generation's tree, for one node and for many."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from pathlib import Path

import pytest
from capsulekit_cli import cli
from small_site import CAPSULE, make_site

from capsulekit.sitepaths import SitePaths
from provisioner.catalog import site_catalog
from provisioner.drifting import drift_of
from provisioner.registry.defaults import load_defaults
from provisioner.registry.registry import Registry, open_registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.trees.entry import Entry
from provisioner.trees.generation import TREE
from provisioner.vnfs.store import VnfsStore

SUM, OTHER = "ab" * 32, "cd" * 32
HEAD, OWN = "capsulekit-tree 1\nnode\n", f"etc d 0755 0 0 0 -\netc/hostname f 0644 0 0 1 {OTHER}\n"
CLEAN = f"{HEAD}{OWN}upper\netc d 0755 0 0 0 -\nend\n"
EDITED = CLEAN.replace("end\n", f"etc/motd f 0644 0 0 1 {OTHER}\netc/new f 0644 0 0 1 {SUM}\nend\n")


class Site:
    """Nodes that booted the small capsule, whose tree is written down: no layer is mounted here."""

    def __init__(self, folder: Path, number: int = 3) -> None:
        self.paths: SitePaths = make_site(folder)
        self.registry: Registry = open_registry(self.paths)
        self.macs = [f"52:54:00:00:{n // 256:02X}:{n % 256:02X}" for n in range(number)]
        self.registry.add_nodes([(mac, None) for mac in self.macs], defaults=load_defaults(self.paths))
        self.store = VnfsStore(self.paths, self.registry)
        self.desk = Desk(self.paths, load_site(self.paths), self.registry, site_catalog(self.paths), self.store)
        self.identity = self.store.get(CAPSULE).identity
        self.tree(
            Entry("etc", "d", 0o755, 0, 0), *(Entry(f"etc/{n}", "f", 0o644, 0, 0, 1, SUM) for n in ("host", "motd"))
        )

    def tree(self, *entries: Entry) -> None:
        text = "".join(f"{one.line()} -\n" for one in entries)
        (self.store.generation(CAPSULE, self.identity) / TREE).write_text(text)

    def boot(self, mac: str, *, now: float | None = None, state: str = "ready") -> None:
        self.desk.hand_out(mac)
        if now is not None:
            self.registry.record_booted(mac, self.registry.booted()[mac].plan, now=now)
        self.registry.record_state(mac, state, "10.0.0.9")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    monkeypatch.setenv("CAPSULEKIT_CONFIG_DIR", str(made.paths.config))
    monkeypatch.setenv("CAPSULEKIT_STATE_DIR", str(made.paths.state))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return made


def drift(*words: str) -> list[str]:
    done = cli("node", "drift", *words)
    assert (done.status, done.err) == (0, ""), done
    return done.out.splitlines()


def test_nodes_of_which_the_same_is_said_are_one_line(site: Site) -> None:
    for mac in site.macs:
        site.boot(mac)
    site.registry.record_tree(site.macs[0], EDITED.encode())
    site.registry.record_tree(site.macs[1], EDITED.encode())
    site.registry.record_tree(site.macs[2], CLEAN.encode())
    assert drift() == ["n[0000-0001]: files: 1 added, 1 changed"]
    assert drift("-v") == [
        "n[0000-0001]: files: 1 added, 1 changed", "n[0000-0001]: files: changed: /etc/motd",
        "n[0000-0001]: files: added: /etc/new", "n0002: as booted",
    ]  # fmt: skip
    first, _, last = json.loads(cli("--json", "node", "drift").out)
    assert (first["drift"], last["drift"]) == (True, False)
    assert first["files"]["paths"] == [["changed", "/etc/motd"], ["added", "/etc/new"]]
    assert first["files"]["modules"] == 1 and first["files"]["counts"] == {"added": 1, "changed": 1}


def test_a_list_that_is_missing_or_old_is_said(site: Site) -> None:
    now = time.time()
    site.boot(site.macs[0])
    site.boot(site.macs[1])
    site.registry.record_tree(site.macs[1], CLEAN.encode(), now=now - 100)
    site.boot(site.macs[2], now=now - 90000)
    site.registry.record_tree(site.macs[2], EDITED.encode(), now=now - 80000)
    first, second, *third = drift()
    assert first == "n0000: files: its agent sent no list of them"
    assert second.startswith("n0001: files: not known: its list is of ") and second.endswith("before its last boot")
    assert third[0].startswith("n0002: files: as of ") and third[0].endswith("; not heard of since")
    assert third[1] == "n0002: files: 1 added, 1 changed"
    assert site.registry.tree_seen(site.macs[2], "0" * 64) is False
    digest = site.registry.tree_marks()[site.macs[2]].digest
    assert site.registry.tree_seen(site.macs[2], digest), "it said that its list still holds"
    assert drift("n0002") == ["n0002: files: 1 added, 1 changed"]


def test_a_node_on_its_way_up_is_not_asked_for_a_list(site: Site) -> None:
    site.boot(site.macs[0], state="init")
    assert drift("n0000") == []


def test_what_the_site_says_does_not_count_does_not(site: Site) -> None:
    site.boot(site.macs[0])
    site.registry.record_tree(site.macs[0], EDITED.encode())
    (site.paths.config / "drift.skip").write_text("# ours\n/etc/motd\n")
    assert drift("n0000") == ["n0000: files: 1 added"]
    (site.paths.config / "drift.skip").write_text("/etc/../x\n")
    done = cli("node", "drift", "n0000")
    assert done.status == 1 and "drift.skip, line 1: " in done.err
    (site.paths.config / "drift.skip").write_text("")
    assert drift("n0000") == ["n0000: files: 1 added, 1 changed"]


def test_what_its_ready_modules_write_is_no_drift_and_is_counted(site: Site) -> None:
    written = (
        "etc/motd f 0644 0 0 1 {0}\netc/sysctl.d d 0755 0 0 0 -\netc/sysctl.d/90-capsulekit.conf f 0644 0 0 1 {0}\n"
    )
    listed = CLEAN.replace("end\n", written.format(OTHER) + "end\n")
    site.registry.activate("hostname", ["init/all"])
    for mac in site.macs[:2]:
        site.boot(mac)
        site.registry.record_tree(mac, listed.encode())
    assert drift() == ["n[0000-0001]: files: 2 added, 1 changed", "n0002: no boot is known of"]
    site.registry.activate("sysctl", ["ready/node/n0000"])
    assert drift("n0000", "n0001") == ["n0000: files: 1 changed", "n0001: files: 2 added, 1 changed"]
    records = json.loads(cli("--json", "node", "drift", "n0000", "n0001").out)
    assert [one["files"]["modules"] for one in records] == [3, 1]
    site.registry.record_tree(site.macs[0], listed.replace("sysctl.d/90", "sysctl.d/91").encode())
    assert drift("n0000") == ["n0000: files: 1 added, 1 changed"], "another file there is somebody's own"


def test_a_cut_list_and_a_damaged_one_are_said(site: Site) -> None:
    site.boot(site.macs[0])
    site.registry.record_tree(site.macs[0], EDITED.replace("\nend\n", "\ncut\n").encode())
    assert drift("n0000") == ["n0000: files: its list is cut: there is more", "n0000: files: 1 added, 1 changed"]
    with site.registry.db.write() as con:
        con.execute("UPDATE tree_lists SET list = 'AAAA'")
    assert drift("n0000")[0].startswith("n0000: files: can't be compared: the list of files of")


def test_after_a_livesync_a_node_is_compared_with_what_it_was_brought_to(site: Site) -> None:
    mac = site.macs[0]
    site.boot(mac)
    site.registry.record_tree(mac, EDITED.encode())
    told = site.registry.booted()[mac]
    # Another generation has the edited file as it is now.
    other = "f" * 64
    folder = site.store.generation(CAPSULE, other)
    folder.mkdir()
    entries = (Entry("etc", "d", 0o755, 0, 0), Entry("etc/host", "f", 0o644, 0, 0, 1, SUM),
               Entry("etc/motd", "f", 0o644, 0, 0, 1, OTHER))  # fmt: skip
    (folder / TREE).write_text("".join(f"{one.line()} -\n" for one in entries))
    assert site.registry.record_synced(mac, other, told=told.time + 1) is False, "it has booted since"
    assert site.registry.record_synced(mac, other, told=told.time) is True
    outline = json.loads(site.registry.booted()[mac].plan)
    assert (outline["identity"], outline["under"]) == (other, site.identity)
    assert "n0000: files: 1 added" in drift("n0000")
    site.registry.record_state(mac, "ready", "10.0.0.9")
    assert json.loads(site.registry.booted()[mac].plan)["identity"] == other, "a report takes nothing back"
    # And brought to a third, it still booted the first.
    assert site.registry.record_synced(mac, "e" * 64, told=told.time)
    assert json.loads(site.registry.booted()[mac].plan)["under"] == site.identity
    site.boot(mac)
    assert "under" not in json.loads(site.registry.booted()[mac].plan)


def test_a_hostile_name_reaches_the_terminal_harmless(site: Site) -> None:
    site.boot(site.macs[0])
    evil = CLEAN.replace("end\n", f"etc/%1B[2J%0AERROR f 0644 0 0 1 {SUM}\nend\n")
    site.registry.record_tree(site.macs[0], evil.encode())
    assert drift("-v", "n0000")[1] == "n0000: files: added: /etc/%1B[2J%0AERROR"


def test_memory_grows_neither_with_the_image_nor_with_the_lists(tmp_path: Path) -> None:
    site = Site(tmp_path, 60)
    for mac in site.macs:
        site.boot(mac)
        site.registry.record_tree(mac, EDITED.encode())
    peaks = []
    for size in (100, 40000):
        names = sorted(f"f{number:06d}" for number in range(size))
        site.tree(Entry("etc", "d", 0o755, 0, 0), Entry("etc/motd", "f", 0o644, 0, 0, 1, SUM),
                  *(Entry(name, "f", 0o644, 0, 0, 1, SUM) for name in names))  # fmt: skip
        nodes = site.registry.nodes()
        tracemalloc.start()
        assert all(one.files.counts == {"added": 1, "changed": 1} for one in drift_of(site.paths, site.registry, nodes))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20), peaks
