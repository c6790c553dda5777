"""The plan: the exact lines a node reads, and why a node gets none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_capsule import AUTHOR, layer, manifest

from capsulekit.errors import CapsulekitError
from provisioner.catalog import DataFile, Script
from provisioner.registry.model import InstalledCapsule, Node
from provisioner.server.plan import CapsuleView, make_plan, make_state_plan, wait_reason
from provisioner.vnfs.store import StoredMember

NODE = Node(
    nodeid="52:54:00:12:34:56",
    hostname="n0001",
    cluster="new",
    groupname="cluster",
    vnfs="tiny-1.0.amd64",
    kargs="nosmt",
    machine_id="0123456789abcdef" * 2,
)
CAPSULE = InstalledCapsule("tiny-1.0.amd64", "c" * 64, AUTHOR.public.id, AUTHOR.public.text, "1.0", "amd64", 1.0)
VIEW = CapsuleView(
    CAPSULE,
    manifest(provision=("provision/init/10-hello", "provision/init/05-first", "provision/ready/10-later")),
    (
        StoredMember("boot/vmlinuz", "1" * 64, 1800, False),
        StoredMember("layers/secret.squashfs", "2" * 64, 77, True),
    ),
)
SCRIPTS = (
    Script("sshkeys", "init", 30, "30-sshkeys", b"sh", "3" * 64),
    Script("hostname", "init", 5, "05-hostname", b"shell", "4" * 64, required=False),
)
DATA = (DataFile("sshkeys", "ssh_host_key", b"secret", "5" * 64),)


def test_the_plan_reads_exactly_so() -> None:
    assert make_plan(NODE, VIEW, SCRIPTS, DATA, site_kargs="site=1", now=1700000000.9) == (
        "plan 1\n"
        "nodeid 52:54:00:12:34:56\n"
        "hostname n0001\n"
        "cluster new\n"
        "group cluster\n"
        "vnfs tiny-1.0.amd64\n"
        "machine-id 0123456789abcdef0123456789abcdef\n"
        "time 1700000000\n"
        f"identity {'c' * 64}\n"
        f"key {AUTHOR.public.text}\n"
        f"comment capsule tiny 1.0 amd64 recipe {'ab' * 32}\n"
        "debug 0\n"
        "init /sbin/init\n"
        "kargs console=ttyS0 quiet site=1 nosmt\n"
        f"file boot/vmlinuz {'1' * 64} 1800 public\n"
        f"file layers/secret.squashfs {'2' * 64} 77 private\n"
        "layer layers/modules.squashfs 4096\n"
        "layer layers/rootfs.squashfs 4096\n"
        "provision provision/init/05-first\n"
        "provision provision/init/10-hello\n"
        f"script init 05 05-hostname hostname {'4' * 64} 5 optional\n"
        f"script init 30 30-sshkeys sshkeys {'3' * 64} 2 required\n"
        f"data sshkeys ssh_host_key {'5' * 64} 6\n"
        "end\n"
    )


def test_empty_values_keep_their_place() -> None:
    bare = replace(NODE, cluster="", groupname="", kargs="")
    view = replace(VIEW, manifest=manifest(cmdline=""))
    lines = make_plan(bare, view, (), (), site_kargs="", now=0).splitlines()
    assert lines[3:5] == ["cluster -", "group -"]
    assert "kargs" in lines


def test_layers_keep_the_manifests_order_topmost_first() -> None:
    view = replace(VIEW, manifest=manifest(layers=(layer("layers/rootfs.squashfs"), layer("layers/modules.squashfs"))))
    lines = make_plan(NODE, view, (), (), site_kargs="", now=0).splitlines()
    assert [line for line in lines if line.startswith("layer ")] == [
        "layer layers/rootfs.squashfs 4096",
        "layer layers/modules.squashfs 4096",
    ]


@pytest.mark.parametrize("forged", [{"hostname": "a b"}, {"groupname": "x\nend"}, {"machine_id": ""}])
def test_a_value_that_would_break_a_line_is_refused(forged: dict[str, str]) -> None:
    with pytest.raises(CapsulekitError, match="in a boot plan"):
        make_plan(replace(NODE, **forged), VIEW, (), (), site_kargs="", now=0)


def test_mirrors_stand_between_the_arguments_and_the_files() -> None:
    urls = ("http://10.0.0.9:81/a", "https://cache.site.invalid")
    lines = make_plan(NODE, VIEW, (), (), site_kargs="", now=0, mirrors=urls).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("kargs "))
    assert lines[at + 1 : at + 3] == [f"mirror {url}" for url in urls]
    assert lines[at + 3].startswith("file ")


def test_kernel_arguments_can_not_start_a_line() -> None:
    with pytest.raises(CapsulekitError, match="one line"):
        make_plan(NODE, VIEW, (), (), site_kargs="quiet\nkey RWforged", now=0)


@pytest.mark.parametrize(
    ("changes", "installed", "reason"),
    [
        ({}, True, ""),
        ({}, False, "capsule-missing"),
        ({"vnfs": ""}, False, "no-capsule"),
        ({"enabled": False, "vnfs": ""}, True, "disabled"),
        ({"accepted": False, "enabled": False}, True, "not-accepted"),
    ],
)
def test_why_a_node_waits(changes: dict[str, object], installed: bool, reason: str) -> None:
    assert wait_reason(replace(NODE, **changes), CAPSULE if installed else None) == reason  # type: ignore[arg-type]


def test_a_state_plan_reads_exactly_so_and_ok_is_the_empty_one() -> None:
    text = make_state_plan(NODE, "ready", SCRIPTS, DATA, {"sshkeys": (300, 60)})
    assert text == (
        "plan 1\n"
        "nodeid 52:54:00:12:34:56\n"
        "hostname n0001\n"
        "cluster new\n"
        "group cluster\n"
        "vnfs tiny-1.0.amd64\n"
        "state ready\n"
        "run sshkeys 300 60\n"
        "run hostname 0 600\n"
        f"script init 30 30-sshkeys sshkeys {'3' * 64} 2 required\n"
        f"script init 05 05-hostname hostname {'4' * 64} 5 optional\n"
        f"data sshkeys ssh_host_key {'5' * 64} 6\n"
        "end\n"
    )
    assert make_state_plan(NODE, "ready", (), DATA, {}) == "ok\n"
