"""A node of a hybrid capsule that the master divides and exports by itself, its other layers fetched by NFS too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from e2e_bench import Bench, shell
from serving import set_site

from capsulekit.capsule.manifest import HYBRID
from capsulekit.edit.stack import Image, merged
from provisioner.lab.qemu import Node as Machine
from provisioner.server.record import running_server
from provisioner.vnfs.store import VnfsStore

pytestmark = pytest.mark.timeout(1500)
MAC = "52:54:00:E2:E0:19"
CAPSULE = "e2e-shared"  # a name of its own: another test has this capsule as it was built
RECIPE = built.ROOT / "tests/data/hybrid/recipe.toml"
BOOT = 480.0  # seconds; emulation on two busy cores
# The site's own list: more than the recipe's, and without the program that the recipe moves.
LIST = """
# documents, time zones, and all data of languages; what a node needs of it to boot stays
/usr/share
/usr/lib/locale/**
"""
# What boots change of a root below /usr: nothing.
FILES = "find usr -xdev ! -type d | LC_ALL=C sort"


@dataclass
class Up:
    """The node, ready, and the master's view of its capsule."""

    bench: Bench
    machine: Machine
    view: Path


@pytest.fixture(scope="module")
def up(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    site = bench.site
    site.command("vnfs", "import", str(built.capsule(RECIPE)), "--as", CAPSULE)
    own = site.paths.config / "vnfs" / CAPSULE / "hybridize"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(LIST)
    set_site(site.paths, nfs="ganesha", transfer="nfs")
    site.command("serve", "reload")
    site.command("vnfs", "rebuild", CAPSULE)
    site.command("node", "add", MAC, "shared.new")
    site.command("node", "set", "vnfs", CAPSULE, "shared")
    machine = bench.lab.node(MAC, memory=768)
    registry = site.registry
    store = VnfsStore(site.paths, registry)
    digests, told = store.digests(CAPSULE), store.manifest(CAPSULE)
    registry.close()
    images = [Image(store.blob(digests[layer.path])) for layer in told.layers]
    machine.start()
    try:
        site.wait_ready(MAC, BOOT)
        machine.console.sendline("")
        machine.console.expect(r"root@shared:~# ", 180)
        folder = Path(tmp_path_factory.mktemp("view")) / "v"
        with merged(images, folder, hybrid=Image(store.blob(digests[HYBRID]))) as view:
            yield Up(bench, machine, view)
    finally:
        machine.stop()
        set_site(site.paths, transfer="http")
        site.command("serve", "reload")


def test_it_boots_by_itself_with_its_network_layer(up: Up) -> None:
    ip = re.escape(up.bench.lab.ip)
    assert re.search(rf"the network layer {ip}:/layers/[0-9a-f]{{32}} is mounted", up.machine.console.text)
    options = shell(up.machine, "findmnt -no OPTIONS /")
    assert re.search(r"lowerdir=([^,\s]+)", options)[1].split(":")[-1] == "/s/h"  # type: ignore[index]
    assert up.machine.console.text.count("FAILED") == 0


def test_stage_1_says_that_the_layers_came_by_nfs(up: Up) -> None:
    registry = up.bench.site.registry
    events = registry.events(MAC)
    registry.close()
    told = {event.step: event.detail for event in events if event.status == "ok"}
    assert told["nfs"] == f"{up.bench.lab.ip}:/blobs"
    found = re.search(r"^(\d+) files, .*, (\d+) by nfs$", told["layers"])
    assert found is not None and int(found[2]) >= int(found[1]), told["layers"]


def test_the_same_files_are_at_the_same_paths_as_on_the_master(up: Up) -> None:
    wanted = subprocess.run(["sh", "-c", FILES], cwd=up.view, capture_output=True, check=True).stdout.splitlines()
    ours = [line for line in wanted if not line.startswith(b"usr/lib/capsulekit")]
    number = shell(up.machine, f"cd /; {FILES} | grep -v ^usr/lib/capsulekit | wc -l; cd", 180)
    assert int(number) == len(ours)
    digest = subprocess.run(
        ["sha256sum"], input=b"\n".join(ours) + b"\n", capture_output=True, check=True
    ).stdout.split()[0].decode()  # fmt: skip
    assert shell(up.machine, f"cd /; {FILES} | grep -v ^usr/lib/capsulekit | sha256sum; cd", 180).split()[0] == digest


def test_their_bytes_are_the_same_and_a_folder_of_the_network_can_be_written_to(up: Up) -> None:
    sums = "cat usr/share/doc/[a-l]*/copyright usr/share/perl5/*/*.pm 2>/dev/null | sha256sum"
    wanted = subprocess.run(["sh", "-c", sums], cwd=up.view, capture_output=True, text=True, check=True).stdout
    assert shell(up.machine, f"(cd /; {sums})", 180) == wanted.strip()
    assert shell(up.machine, "echo own >/usr/share/doc/bash/own && cat /usr/share/doc/bash/own") == "own"
    assert shell(up.machine, "rm /usr/share/doc/bash/copyright; ls /usr/share/doc/bash | grep -c copyright") == "0"
    assert shell(up.machine, "vmstat -V").startswith("vmstat from procps"), "brought home by the site's list"


def test_the_restart_of_the_nfs_server_only_delays_what_reads(up: Up) -> None:
    sums = "cat usr/share/doc/[m-z]*/copyright | sha256sum"
    wanted = subprocess.run(["sh", "-c", sums], cwd=up.view, capture_output=True, text=True, check=True).stdout
    shell(up.machine, "exec 7</usr/share/doc/tar/copyright")
    record = running_server(up.bench.site.paths)
    assert record is not None
    old = record["nfs"]["ganesha"]["pid"]
    os.kill(old, signal.SIGKILL)
    shell(up.machine, f"(cd /; {sums} >/tmp/sum 2>&1; echo $? >/tmp/status) & sleep 0")
    deadline = time.monotonic() + 240
    while shell(up.machine, "cat /tmp/status 2>/dev/null || echo waits") == "waits":
        assert time.monotonic() < deadline, "the node did not find its server again"
        time.sleep(2)
    assert shell(up.machine, "cat /tmp/sum") == wanted.strip()
    assert int(shell(up.machine, "wc -c <&7")) > 0, "what was open before is open still"
    record = running_server(up.bench.site.paths)
    assert record is not None and record["nfs"]["ganesha"]["pid"] not in (None, old)
