"""The real Debian capsule on a machine with 1 GB, PXE-booted, handed over by kexec: what must hold on the node."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import built
import pytest
from e2e_bench import DEBIAN, Bench, shell

from capsulekit.capsule.manifest import Manifest, loads
from capsulekit.capsule.read import open_capsule
from capsulekit.run import CommandFailed
from provisioner.lab.qemu import Node as Machine
from provisioner.registry.model import Event, Node

BOOT = 420.0  # seconds; emulation on two busy cores

pytestmark = pytest.mark.timeout(1200)


@dataclass
class Booted:
    """The node when it was ready for the first time: its machine, its row, its events, what the capsule says."""

    bench: Bench
    machine: Machine
    node: Node
    events: list[Event]
    manifest: Manifest


@pytest.fixture(scope="module")
def booted(bench: Bench) -> Iterator[Booted]:
    """The node added by MAC with its capsule, switched on, ready, logged in on the serial console."""
    mac = bench.debian.machine.mac
    bench.site.command("node", "add", mac, "deb0.new")
    bench.site.command("node", "set", "vnfs", DEBIAN, "deb0")
    bench.debian.start()
    node = bench.site.wait_ready(mac, BOOT)
    bench.debian.console.sendline("")
    bench.debian.console.expect(r"root@[a-z0-9]+:~# ", 120)
    registry = bench.site.registry
    with open_capsule(built.capsule(built.E2E)) as capsule:
        manifest = loads(capsule.read_member("capsule.toml"))
    yield Booted(bench, bench.debian, node, registry.events(mac), manifest)
    registry.close()


def test_the_running_kernel_is_the_capsules(booted: Booted) -> None:
    assert shell(booted.machine, "uname -r") == booted.manifest.kernel_release
    # It was started by kexec: stage 1's ticket and MAC are not on its command line.
    assert "ck.ticket" not in shell(booted.machine, "cat /proc/cmdline")


def test_root_is_the_overlay_of_the_capsules_layers(booted: Booted) -> None:
    options = shell(booted.machine, "findmnt -no FSTYPE,OPTIONS /")
    assert options.startswith("overlay")
    lower = re.search(r"lowerdir=([^,\s]+)", options)
    assert lower is not None
    # The node's own layer on top of those in the manifest.
    assert len(lower.group(1).split(":")) == 1 + len(booted.manifest.layers)


def test_hostname_came_from_the_module(booted: Booted) -> None:
    assert shell(booted.machine, "hostname").split(".")[0] == "deb0"
    assert "deb0" in shell(booted.machine, "cat /etc/hosts")


def test_the_agent_is_active_and_keeps_reporting(booted: Booted) -> None:
    assert shell(booted.machine, "systemctl is-active capsule-agent") == "active"
    seen = booted.node.lastcontact or 0.0
    booted.bench.site.wait(
        booted.node.nodeid, lambda n, _e: (n.lastcontact or 0.0) > seen and n.status == "ready", 180, "another report"
    )
    assert shell(booted.machine, "stat -c %a:%U /etc/capsulekit/agent/session") == "600:root"


def test_a_replaced_folder_a_deleted_file_and_a_file_capability_hold(booted: Booted) -> None:
    assert shell(booted.machine, "ls -A /etc/skel") == "only"
    assert shell(booted.machine, "test -e /etc/issue.net || echo gone") == "gone"
    assert shell(booted.machine, "/sbin/getcap /usr/bin/chrt") == "/usr/bin/chrt cap_sys_nice=ep"


def test_a_merged_usr_keeps_its_lib_link_under_the_modules_layer(booted: Booted) -> None:
    assert shell(booted.machine, "readlink /lib") == "usr/lib"
    assert shell(booted.machine, "modprobe -n -v dummy 2>&1 | tail -n 1").startswith("insmod /lib/modules/")


LIST_MARKS = """
import errno, os, sys
seen = set()
for base, _, files in os.walk(sys.argv[1]):
    for path in [base, *(os.path.join(base, name) for name in files)]:
        try:
            seen |= {name for name in os.listxattr(path, follow_symlinks=False) if "overlay" in name}
        except OSError as error:  # a squashfs without any attribute says that it supports none
            assert error.errno == errno.EOPNOTSUPP, error
print(*sorted(seen) or ["none"])
"""


def test_no_layer_holds_overlay_marks_but_opaque_ones(booted: Booted) -> None:
    code = base64.b64encode(LIST_MARKS.encode()).decode()
    out = shell(
        booted.machine,
        f"mkdir -p /tmp/l; echo {code} | base64 -d >/tmp/marks.py; for l in /dev/loop[0-9]*; do "
        "losetup $l >/dev/null 2>&1 || continue; mount -t squashfs -o ro $l /tmp/l && python3 /tmp/marks.py /tmp/l; "
        "umount /tmp/l; done",
        300,
    )
    # Three layers: the folder replaced by the script is opaque in the node's own one; there is no other mark anywhere.
    assert sorted(out.splitlines()) == ["none", "none", "trusted.overlay.opaque"]


def test_sshd_runs_with_the_nodes_own_host_key(booted: Booted) -> None:
    kept = booted.bench.site.paths.state / "nodes" / booted.node.nodeid.replace(":", "-") / "ssh"
    wanted = (kept / "ssh_host_ed25519_key.pub").read_text().split()[:2]
    deadline, scanned = time.monotonic() + 120, ""
    while not scanned.strip() and time.monotonic() < deadline:
        # The agent may have said ready before sshd listens.
        with contextlib.suppress(CommandFailed):
            scanned = booted.bench.lab.run(["ssh-keyscan", "-T", "20", "-t", "ed25519", booted.node.ipaddr], 60)
        time.sleep(1)
    assert scanned.split()[1:3] == wanted
    assert shell(booted.machine, "ls /etc/ssh/ssh_host_*_key | wc -l") == "2"
    assert shell(booted.machine, "stat -c %a /etc/ssh/ssh_host_ed25519_key") == "600"


def test_no_first_boot_presets_run_and_the_machine_id_is_the_registrys(booted: Booted) -> None:
    assert shell(booted.machine, "cat /etc/machine-id") == booted.node.machine_id
    # systemd's own words when it finds a first boot (src/core/main.c); the journal itself must be there to count.
    first_boot = "Detected first boot|Initializing machine ID|preset unit settings"
    assert shell(booted.machine, f"journalctl -b --no-pager | grep -cE '{first_boot}'") == "0"
    assert int(shell(booted.machine, "journalctl -b --no-pager | wc -l")) > 100


def test_memory_from_power_on_to_ready_was_measured(booted: Booted) -> None:
    measured = [(e.step or e.state, e.mem_used_kb) for e in booted.events if e.mem_used_kb]
    peak = max(kb for _, kb in measured if kb)
    layers = sum(layer.size for layer in booted.manifest.layers)
    print(f"peak memory of stage 1 {peak / 1024:.0f} MB for {layers / 1e6:.0f} MB of layers; by step: {measured}")
    assert 0 < peak < 1024 * 1024
    assert {"kexec", "ready"} <= {name for name, _ in measured}


def test_node_status_shows_init_handoff_and_ready_with_times(booted: Booted) -> None:
    line = next(
        row for row in booted.bench.site.command("node", "status", "deb0").splitlines() if row.startswith("deb0")
    )
    assert re.search(r"init \d\d:\d\d:\d\d · handoff \+\d+ s · ready \+\d+ s", line), line


def test_the_master_knows_the_nodes_devices_and_that_stage_1_drives_them(booted: Booted) -> None:
    (shown,) = json.loads(booted.bench.site.command("node", "show", "--json", "deb0"))
    found = {device["modalias"]: device for device in shown["devices"]}
    # QEMU's virtio NIC, and the PCI function it hangs on.
    nic = found["virtio:d00000001v00001AF4"]
    assert (nic["driver"], nic["module"], nic["boot"], nic["class"]) == ("virtio_net", "virtio_net", True, "network")
    assert [d["driver"] for d in found.values() if d["boot"] and d["class"] == "virtio"] == ["virtio-pci"]
    assert [d["boot"] for d in found.values() if d["modalias"].startswith("virtio:d00000004")] == [False]
    assert any(event.step == "devices" and event.status == "ok" for event in booted.events)
    checked = json.loads(booted.bench.site.command("stage1", "check", "--fleet", "--json", str(built.stage1())))
    assert checked["ok"] is True
    assert checked["boot"]["covered"] == checked["boot"]["nodes"] >= 1
    assert checked["classes"]["network"]["covered"] == checked["classes"]["network"]["devices"] >= 1


def test_a_second_boot_needs_no_new_registration(booted: Booted) -> None:
    before = booted.bench.site.command("node", "list")
    again = time.time()
    booted.machine.console.sendline("reboot")
    node = booted.bench.site.wait_ready(booted.node.nodeid, BOOT, since=again)
    assert booted.bench.site.command("node", "list") == before
    # The old shell printed one more prompt after "reboot": the new one comes after a new login.
    booted.machine.console.expect(r"deb0 login: root \(automatic login\)", 180)
    booted.machine.console.expect(r"root@deb0:~# ", 120)
    assert shell(booted.machine, "cat /etc/machine-id") == booted.node.machine_id == node.machine_id
    assert shell(booted.machine, "systemctl is-active capsule-agent") == "active"
