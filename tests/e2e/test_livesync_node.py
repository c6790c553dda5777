"""A running Debian node: its agent tells what was changed on it, and a livesync brings it to a newer generation."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from e2e_bench import DEBIAN, Bench, shell
from livesync_bench import squashfs

from capsulekit.capsule.manifest import Layer
from capsulekit.files import sha256_file
from provisioner.lab.qemu import Node as Machine
from provisioner.vnfs.generation import Part, new_generation, stored, switch
from provisioner.vnfs.place import placing
from provisioner.vnfs.store import VnfsStore

pytestmark = pytest.mark.timeout(1200)
BOOT = 420.0  # seconds; emulation on two busy cores
MAC, NAME = "52:54:00:E2:E0:17", "live"
# Of base-files, with the same number of letters and the same time: what size and time alone would not show.
SAME, GONE, NEW = "usr/share/base-files/motd", "usr/share/base-files/profile.md5sums", "usr/bin/hello-live"


@dataclass
class Live:
    """The node, ready, logged in on the serial console, and the first list of its agent is there."""

    bench: Bench
    machine: Machine

    def outline(self) -> dict[str, Any]:
        with contextlib.closing(self.bench.site.registry) as registry:
            told: dict[str, Any] = json.loads(registry.booted()[MAC].plan)
            return told

    def drift(self) -> dict[str, Any]:
        (record,) = json.loads(self.bench.site.command("--json", "node", "drift", "live0"))
        return dict(record)

    def wait_drift(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + 180
        while not wanted(found := self.drift()):
            assert time.monotonic() < deadline, (what, found)
            time.sleep(2)
        return found

    def livesync(self, *words: str) -> str:
        """The command, where the node can be reached."""
        paths = self.bench.site.paths
        entry = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()"]
        place = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
        return self.bench.lab.run([*entry, *place, "-y", "vnfs", "livesync", *words], 600)


@pytest.fixture(scope="module")
def live(bench: Bench) -> Iterator[Live]:
    site, machine = bench.site, bench.lab.node(MAC, memory=1024)
    site.command("vnfs", "clone", DEBIAN, NAME)
    site.command("node", "add", MAC, "live0.new")
    site.command("node", "set", "vnfs", NAME, "live0")
    machine.start()
    site.wait_ready(MAC, BOOT)
    for line in ("", "dmesg -n 1"):  # what the kernel says late would stand between question and answer
        machine.console.sendline(line)
        machine.console.expect(r"root@[a-z0-9]+:~# ", 120)
    shell(machine, "for n in interval tree-interval; do echo 5 >/etc/capsulekit/agent/$n; done")
    shell(machine, "systemctl restart capsule-agent")
    made = Live(bench, machine)
    made.wait_drift(lambda found: found["files"]["seen"] is not None, "the agent's first list")
    yield made
    machine.stop()


def newer(live: Live, folder: Path) -> str:
    """A second generation: a same-size edit, a new program, a deleted file; its identity."""
    with contextlib.closing(live.bench.site.registry) as registry:
        store = VnfsStore(live.bench.site.paths, registry)
        base = stored(store, store.get(NAME), store.get(NAME).identity)
        text, when = shell(live.machine, f"base64 -w0 /{SAME}; echo; stat -c %Y /{SAME}").splitlines()
        for name in (SAME, NEW):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / SAME).write_bytes(b"X" + base64.b64decode(text)[1:])
        os.utime(folder / SAME, (int(when), int(when)))
        (folder / NEW).write_text("#!/bin/sh\necho from the second generation\n")
        (folder / NEW).chmod(0o755)
        os.mknod(folder / GONE, stat.S_IFCHR, os.makedev(0, 0))
        image = squashfs(folder, folder.parent / "edit.squashfs")
        with store.lock(), placing(store, "make a generation") as placed:
            made = Layer("layers/01-edit.squashfs", image.stat().st_size, sha256_file(image), 1 << 20)
            told = replace(base.manifest, layers=(made, *base.manifest.layers))
            row = new_generation(store, placed, base, told, [Part(made.path, image, False)])
            switch(store, row, base=base.row.identity, kind="edit")
        return row.identity


def test_what_boots_is_as_its_generation_has_it(live: Live) -> None:
    found = live.drift()
    assert (found["files"]["counts"], found["files"]["problem"]) == ({}, ""), found["files"]
    assert found["files"]["modules"] > 3 and found["differences"] == []
    assert shell(live.machine, "stat -c %a /run/capsulekit-stack") == "700"


def test_a_file_edited_by_hand_is_seen(live: Live) -> None:
    shell(live.machine, "echo by hand >>/etc/issue; echo mine >/etc/mine.conf; rm /etc/issue.net 2>/dev/null")
    found = live.wait_drift(lambda one: ["changed", "/etc/issue"] in one["files"]["paths"], "the edited file")
    assert ["added", "/etc/mine.conf"] in found["files"]["paths"]
    assert live.bench.site.command("node", "drift", "live0").startswith("live0: files: 1 added, 1 changed")


def test_a_livesync_changes_the_running_node_and_its_reported_generation(live: Live, tmp_path: Path) -> None:
    booted = live.outline()["identity"]
    size = shell(live.machine, f"stat -c '%s %Y' /{SAME}")
    identity = newer(live, tmp_path / "edit")
    would = [one["what"] for one in live.drift()["differences"]]
    assert would == ["identity"]
    assert f"  send /{SAME}" in live.livesync(NAME, "--dry-run").splitlines()
    assert live.outline()["identity"] == booted

    said = live.livesync(NAME, "--delete")
    assert said.startswith("live0: 3 sent, 1 removed") and "overwritten: /etc/issue" in said, said
    assert shell(live.machine, f"stat -c '%s %Y' /{SAME}") == size
    assert shell(live.machine, f"head -c 1 /{SAME}; echo; hello-live; ls /{GONE} 2>&1 | wc -l; cat /etc/mine.conf") == (
        "X\nfrom the second generation\n1\nmine"
    )
    assert "by hand" not in shell(live.machine, "cat /etc/issue")
    assert (live.outline()["identity"], live.outline()["under"]) == (identity, booted)
    # It says so itself too, and its next reports take nothing back.
    with contextlib.closing(live.bench.site.registry) as registry:
        seen = registry.tree_marks()[MAC].seen
    live.wait_drift(lambda one: one["files"]["seen"] > seen + 10, "two more reports")
    found = live.wait_drift(lambda one: one["files"]["counts"] == {"added": 1}, "nothing but its own file")
    assert found["differences"] == []
    assert live.outline()["identity"] == identity
    assert live.livesync(NAME).startswith("live0: nothing to do")
