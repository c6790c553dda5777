"""A package installed by apt inside a mounted capsule: the node waits meanwhile, boots with it, and without it again.

One node, two boots of a clone of the Debian capsule. umount and rollback are killed with -9 before each: what boots is
what the next command made of that.
"""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import KILLED
from e2e_bench import DEBIAN, Bench, shell

from capsulekit.edit.record import edits
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite

BOOT = 420.0  # seconds; emulation on two busy cores
CAPSULE, MAC = "edited", "52:54:00:E2:E0:21"
# vfs_cap_data of linux/capability.h, version 2 with the effective flag: CAP_NET_RAW (13) permitted.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
# linux/posix_acl_xattr.h: u::rw- u:2:rw- g::r-- m::rw- o::---
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, who)
    for tag, bits, who in ((1, 6, 0xFFFFFFFF), (2, 6, 2), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def site(bench: Bench) -> LabSite:
    """The bench's site with a capsule of our own, in which apt has installed a package."""
    made = bench.site
    made.command("vnfs", "clone", DEBIAN, CAPSULE)
    install = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends tree"
    said = made.command("shell", CAPSULE, "--at", str(mnt(made)), "--message", "a tree", "--", "sh", "-c", install)
    assert "package tree" in said
    made.command("node", "add", MAC, "edit0.new")
    made.command("node", "set", "vnfs", CAPSULE, "edit0")
    return made


@pytest.fixture(scope="module")
def machine(bench: Bench, site: LabSite) -> Iterator[Machine]:
    made = bench.lab.node(MAC, memory=1024)
    yield made
    made.stop()


def mnt(site: LabSite) -> Path:
    return site.paths.state.parent / "mnt"


def edit(at: Path) -> None:
    """What packing gets wrong most easily."""
    (at / "usr/local/bin/probe").write_bytes((at / "usr/bin/true").read_bytes())
    (at / "usr/local/bin/probe").chmod(0o755)
    os.setxattr(at / "usr/local/bin/probe", "security.capability", CAPABILITY)
    (at / "etc/shared").write_text("for two\n")
    os.setxattr(at / "etc/shared", "system.posix_acl_access", ACL)
    (at / "etc/issue").unlink()


def killed(site: LabSite, *words: str) -> bool:
    """A command killed before one of its durable writes; whether what nodes boot is another one. It verifies anyway."""
    base, writes = identity(site), random.randrange(14)
    argv = [sys.executable, "-c", KILLED, str(writes), "--config-dir", str(site.paths.config)]
    argv += ["--state-dir", str(site.paths.state), "-y", *words]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    print(f"{words[:2]} killed before its durable write {writes}: {done}")
    assert done.returncode in (0, -9), done
    site.command("vnfs", "verify", CAPSULE)
    return identity(site) != base


def identity(site: LabSite) -> str:
    [row] = json.loads(site.command("--json", "vnfs", "list", CAPSULE))
    return str(row["identity"])


def log_in(machine: Machine) -> None:
    for line in ("", "dmesg -n 1"):  # what the kernel says late would stand between question and answer
        machine.console.sendline(line)
        machine.console.expect(r"root@[a-z0-9]+:~# ", 120)


def test_a_node_waits_while_its_capsule_is_edited_and_goes_on_by_itself_with_what_was_made(
    site: LabSite, machine: Machine
) -> None:
    """The first boot; what the second finds gone again is here."""
    site.command("mount", CAPSULE, "--at", str(mnt(site)))
    edit(mnt(site))
    machine.start()
    node = site.wait(MAC, lambda n, _: n.status == "waiting", BOOT, "waiting")
    assert re.match(rf"capsule-mounted {CAPSULE} is mounted for editing by \S+ since ", node.error)
    machine.console.expect(rf"waiting: {CAPSULE} is mounted for editing by \S+ since .* it goes on by itself", 60)
    assert f"waiting: capsule-mounted {CAPSULE}" in site.command("node", "status", "edit0")
    words = ("umount", CAPSULE, "--message", "odd files")
    # One that was killed after the switch may have unmounted too; then there is nothing left to do.
    if not killed(site, *words):
        assert "added /etc/shared" in site.command(*words)
    elif any(edit.name == CAPSULE for edit in edits(site.paths.state)):
        assert "unmounted already" in site.command(*words)
    site.wait_ready(MAC, BOOT)
    log_in(machine)
    assert "tree v" in shell(machine, "tree --version")
    assert shell(machine, "dpkg-query -W -f '${Status}' tree") == "install ok installed"
    assert shell(machine, "/sbin/getcap /usr/local/bin/probe") == "/usr/local/bin/probe cap_net_raw=ep"
    look = "import os; print(os.getxattr('/etc/shared', 'system.posix_acl_access').hex())"
    assert shell(machine, f'python3 -c "{look}"') == ACL.hex()
    assert shell(machine, "test -e /etc/issue || echo gone") == "gone"
    # What apt had fetched, and what kept services off, is no part of it.
    assert shell(machine, "ls /var/cache/apt/archives/*.deb /usr/sbin/policy-rc.d 2>/dev/null || echo none") == "none"


def test_after_a_rollback_the_next_boot_is_without_it_and_needs_no_new_registration(
    site: LabSite, machine: Machine
) -> None:
    words = ("vnfs", "rollback", CAPSULE, "--to", "1")
    if not killed(site, *words):
        site.command("-y", *words)
    listed, machine_id = site.command("node", "list"), shell(machine, "cat /etc/machine-id")
    since = time.time()
    machine.console.sendline("reboot")
    node = site.wait_ready(MAC, BOOT, since)
    # The old shell printed one more prompt after "reboot": the new one comes after a new login.
    machine.console.expect(r"edit0 login: root \(automatic login\)", 180)
    log_in(machine)
    assert site.command("node", "list") == listed
    assert shell(machine, "cat /etc/machine-id") == machine_id == node.machine_id
    assert shell(machine, "systemctl is-active capsule-agent") == "active"
    assert shell(machine, "command -v tree || echo none") == "none"
    assert shell(machine, "test -e /etc/issue && echo there") == "there"
    assert shell(machine, "test -e /etc/shared || echo gone") == "gone"
    assert shell(machine, "hostname").startswith("edit0")
