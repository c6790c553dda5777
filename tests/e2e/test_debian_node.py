"""The real Debian capsule on a machine with 1 GB, PXE-booted, handed over by kexec: what must hold on the node."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import built
import pytest
from debian_modules import (
    ADDRESS,
    GROUP,
    RUN_BY,
    activate_all,
    deactivate_all,
    fetched,
    scripts_of,
    shown,
    write_settings,
)
from e2e_bench import DEBIAN, PASSWORD, Bench, shell

from capsulekit.capsule.manifest import Manifest
from capsulekit.run import CommandFailed
from provisioner.lab.qemu import Node as Machine
from provisioner.pki import ca_path
from provisioner.registry.model import Event, Node
from provisioner.siteconf import load_site
from provisioner.vnfs.store import SITE_LAYER, VnfsStore

BOOT = 420.0  # seconds; emulation on two busy cores

pytestmark = pytest.mark.timeout(1200)


@dataclass
class Booted:
    """The node when it was ready for the first time: its machine, its row, its events, what its capsule says.

    ``shown`` is what `module show --for` said of it, by state, before it was switched on.
    """

    bench: Bench
    machine: Machine
    node: Node
    events: list[Event]
    manifest: Manifest
    shown: dict[str, dict[str, Any]]

    def ran(self, since: float = 0.0) -> list[Event]:
        """What the agent said of scripts later than ``since`` (epoch seconds), oldest first."""
        with contextlib.closing(self.bench.site.registry) as registry:
            events = registry.events(self.node.nodeid)
        return [event for event in events if event.step.startswith("ready/") and event.time > since]


@pytest.fixture(scope="module")
def booted(bench: Bench) -> Iterator[Booted]:
    """The node added by MAC with its capsule and modules, switched on, ready, logged in on the serial console."""
    mac, site = bench.debian.machine.mac, bench.site
    site.command("node", "add", mac, "deb0.new")
    for key, value in (("vnfs", DEBIAN), ("group", GROUP), ("address", ADDRESS)):
        site.command("node", "set", key, value, "deb0")
    activate_all(site)
    try:
        yield started(bench, shown(site))
    finally:
        bench.debian.stop()  # an emulated machine that idles takes half a core from the next ones
        deactivate_all(site)


def started(bench: Bench, before: dict[str, dict[str, Any]]) -> Booted:
    """Switch it on, wait until it is ready, and log in."""
    site, mac = bench.site, bench.debian.machine.mac
    bench.debian.start()
    node = site.wait_ready(mac, BOOT)
    for line in ("", "dmesg -n 1"):  # what the kernel says late would stand between question and answer
        bench.debian.console.sendline(line)
        bench.debian.console.expect(r"root@[a-z0-9]+:~# ", 120)
    with contextlib.closing(site.registry) as registry:
        manifest = VnfsStore(site.paths, registry).manifest(DEBIAN)
        return Booted(bench, bench.debian, node, registry.events(mac), manifest, before)


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
    # Four layers: the folder replaced by the script is opaque in the node's own one; there is no other mark anywhere.
    assert sorted(out.splitlines()) == ["none"] * 3 + ["trusted.overlay.opaque"]


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


def test_its_address_is_the_registrys_and_its_files_those_that_were_shown(booted: Booted) -> None:
    assert booted.node.ipaddr == ADDRESS
    addresses = shell(booted.machine, "ip -o -4 addr show scope global").splitlines()
    assert len(addresses) == 1 and f" {ADDRESS}/24 " in addresses[0] and "dynamic" not in addresses[0], "no DHCP"
    assert shell(booted.machine, f"ip -o link show $(ip -o -4 addr show to {ADDRESS} | cut -d' ' -f2) | grep -c 1400")
    (network,) = (f for f in booted.shown["init"]["files"] if f["path"].endswith("10-capsulekit-boot.network"))
    (kernel,) = (f for f in booted.shown["ready"]["files"] if f["module"] == "sysctl")
    for file in (network, kernel):
        assert shell(booted.machine, f"cat {file['path']}") == file["content"].strip()
    hosts = shell(booted.machine, "cat /etc/hosts").splitlines()
    assert {"10.99.0.9 storage"} <= set(hosts) and [line for line in hosts if line.startswith(f"{ADDRESS}")], hosts


def test_the_nearest_settings_count(booted: Booted) -> None:
    # node > group > all > vnfs
    assert shell(booted.machine, "cat /proc/sys/vm/swappiness /proc/sys/vm/dirty_ratio").split() == ["17", "33"]
    assert shell(booted.machine, "readlink /etc/localtime; cat /etc/timezone").split() == [
        "../usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin",
    ]  # fmt: skip


def test_exactly_the_scripts_that_were_shown_ran_in_their_order(booted: Booted) -> None:
    init, ready = booted.shown["init"], booted.shown["ready"]
    assert {script["role"] for script in init["scripts"]} == RUN_BY
    (provision,) = (e.detail for e in booted.events if e.step == "provision" and e.status == "ok")
    assert provision == f"{len(init['scripts'])} scripts"
    digests = {script["sha256"] for script in init["scripts"] if script["module"] != "vnfs"}
    assert digests <= fetched(booted.bench, ADDRESS)
    booted.bench.site.wait(booted.node.nodeid, lambda _n, _e: len(booted.ran()) >= 2, 120, "its ready modules")
    assert [e.step for e in booted.ran()] == [f"ready/{script}" for script in scripts_of(ready)]
    assert [e.status for e in booted.ran()] == ["ok", "ok"]
    # Each script once, the widest first, and with the words that were promised.
    assert shell(booted.machine, "cat /etc/ran").splitlines() == [
        f"init: deb0.new of {GROUP} with {DEBIAN}", "init: this node alone",
        f"ready: deb0.new of {GROUP} with {DEBIAN}", "ready: this node alone",
    ]  # fmt: skip


def test_root_has_the_password_that_the_capsule_asked_for(booted: Booted) -> None:
    line = shell(booted.machine, "cat /etc/shadow")
    found = re.fullmatch(r"root:(\$6\$([./A-Za-z0-9]+)\$[./A-Za-z0-9]{86}):19000:0:99999:7:::", line)
    assert found, line
    again = booted.bench.lab.run(["openssl", "passwd", "-6", "-salt", found[2], PASSWORD], 60)
    assert again.strip() == found[1]
    assert shell(booted.machine, "stat -c %a:%U /etc/shadow") == "600:root"


def test_nobody_gets_the_private_layer_but_a_node_with_its_session(booted: Booted) -> None:
    site = load_site(booted.bench.site.paths)
    plain, tls = f"http://{booted.bench.lab.ip}:{site.http_port}", f"https://{booted.bench.lab.ip}:{site.tls_port}"
    digests = {layer.path: layer.sha256 for layer in booted.manifest.layers}
    private, public = digests[SITE_LAYER], digests["layers/rootfs.squashfs"]

    def status(address: str) -> str:
        asked = ["curl", "-sS", "-r", "0-9", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]
        return booted.bench.lab.run([*asked, str(ca_path(booted.bench.site.paths)), address], 60)

    assert status(f"{plain}/blobs/{public}") == "206"
    assert status(f"{plain}/blobs/{private}") == "404"
    assert status(f"{tls}/blobs/{private}") == "404"
    assert status(f"{tls}/v1/blobs/{private}") == "401"
    own = "/usr/lib/capsulekit"
    curl = f"OPENSSL_CONF=/dev/null {own}/ld.so --library-path {own}/lib {own}/curl -q -sS"
    conf = "/etc/capsulekit/agent"
    asked = f"{curl} --cacert {conf}/ca.pem -K {conf}/session {tls}/v1/blobs/{private} | sha256sum"
    assert shell(booted.machine, asked).split()[0] == private
    assert shell(booted.machine, f"{curl} -k -o /dev/null -w '%{{http_code}}' {tls}/v1/blobs/{private}") == "401"


def test_what_is_activated_now_runs_with_the_next_report(booted: Booted) -> None:
    site = booted.bench.site
    people = {
        "passwdfile/all": ("passwd", "ada:x:1815:1815::/home/ada:/bin/sh"),
        "groupfile/all": ("group", "ada:x:1815:"),
    }
    for path, (file, line) in people.items():
        write_settings(site, path, shell(booted.machine, f"cat /etc/{file}") + f"\n{line}\n")
    since = time.time()
    site.command("module", "activate", "groupfile", f"ready/group/{GROUP}")
    site.command("module", "activate", "passwdfile", f"ready/vnfs/{DEBIAN}", "ready/node/deb0")
    expected = [f"ready/{script}" for script in scripts_of(shown(site)["ready"])]
    assert expected[:2] == ["ready/groupfile/40-groupfile", "ready/passwdfile/40-passwdfile"]
    # The two commands may reach the node with two reports; the last one's list is the whole one.
    count = len(expected)
    site.wait(
        booted.node.nodeid,
        lambda _n, _e: [e.step for e in booted.ran(since)][-count:] == expected,
        90,
        "the last of them",
    )
    assert {event.status for event in booted.ran(since)} == {"ok"}
    assert shell(booted.machine, "id ada") == "uid=1815(ada) gid=1815(ada) groups=1815(ada)"


AUDIT = """name = "audit"
version = "1.0"
summary = "Looks for the disk"
roles = ["ready/all"]
states = ["ready"]
"""


def test_a_ready_module_that_fails_is_told_and_neither_the_others_nor_the_agent_mind(
    booted: Booted, tmp_path: Path
) -> None:
    site = booted.bench.site
    (tmp_path / "audit/ready").mkdir(parents=True)
    (tmp_path / "audit/module.toml").write_text(AUDIT)
    (tmp_path / "audit/ready/60-audit").write_text("#!/bin/sh\necho looking\necho 'the disk is gone' >&2\nexit 7\n")
    pmod = tmp_path / "audit.pmod"
    site.command("module", "pack", str(tmp_path / "audit"), "--key", str(built.author_key()), "-o", str(pmod))
    site.command("module", "import", str(pmod))
    since, agent = time.time(), shell(booted.machine, "systemctl show -p MainPID capsule-agent")
    site.command("module", "activate", "audit", "ready/node/deb0")
    said = "script 60-audit (audit): status 7: looking the disk is gone"

    def told(node: Node, _events: list[Event]) -> bool:
        return node.status == "failed" and "audit" in "".join(e.step for e in booted.ran(since)[-2:-1])

    node = site.wait(booted.node.nodeid, told, 90, "failed, with one script more after that")
    assert node.error == said
    assert f"failed: {said}" in site.command("node", "status", "deb0")
    assert f"deb0:Error={said}\n" in site.command("node", "show", "deb0")
    assert [(e.step, e.status) for e in booted.ran(since)[-2:]] == [
        ("ready/audit/60-audit", "failed"), ("ready/runscript/90-runscript", "ok"),
    ]  # fmt: skip
    seen = node.lastcontact or 0.0
    site.wait(booted.node.nodeid, lambda n, _e: (n.lastcontact or 0.0) > seen + 12, 90, "two more reports")
    assert len([e for e in booted.ran(since) if "audit" in e.step]) == 1, "it is not run again as it is"
    assert shell(booted.machine, "systemctl show -p MainPID capsule-agent") == agent
    site.command("module", "deactivate", "audit")
    node = site.wait(booted.node.nodeid, lambda n, _e: n.status == "ready", 90, "ready again")
    assert node.error == ""
