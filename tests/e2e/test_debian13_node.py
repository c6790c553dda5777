"""A Debian 13 capsule goes the same road as Debian 12's: PXE, stage 1, kexec, ready."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import built
import pytest
from e2e_bench import Bench, shell

from capsulekit.capsule.manifest import Manifest, loads
from capsulekit.capsule.read import open_capsule
from provisioner.lab.qemu import Node as Machine

BOOT = 480.0  # seconds; emulation on two busy cores
RECIPE = built.ROOT / "tests/data/e2e13/recipe.toml"

pytestmark = pytest.mark.timeout(1200)


@dataclass
class Booted:
    """The node when it was ready, and what its capsule says of itself."""

    machine: Machine
    manifest: Manifest


@pytest.fixture(scope="module")
def booted(bench: Bench) -> Iterator[Booted]:
    """A node added by MAC with the capsule, switched on, ready, logged in on the serial console."""
    capsule = built.capsule(RECIPE)
    with open_capsule(capsule) as opened:
        manifest = loads(opened.read_member("capsule.toml"))
    bench.site.command("vnfs", "import", str(capsule))
    machine = bench.lab.node("52:54:00:E2:E0:05", memory=1024)
    bench.site.command("node", "add", machine.machine.mac, "deb13.new")
    bench.site.command("node", "set", "vnfs", manifest.full_name, "deb13")
    machine.start()
    try:
        bench.site.wait_ready(machine.machine.mac, BOOT)
        machine.console.sendline("")
        machine.console.expect(r"root@[a-z0-9]+:~# ", 120)
        machine.console.sendline("dmesg -n 1")  # what the kernel says late would stand between question and answer
        machine.console.expect(r"root@[a-z0-9]+:~# ", 60)
        yield Booted(machine, manifest)
    finally:
        machine.stop()


def test_it_runs_debian_13_with_the_capsules_kernel(booted: Booted) -> None:
    assert shell(booted.machine, "cut -d. -f1 /etc/debian_version") == "13"
    assert shell(booted.machine, "uname -r") == booted.manifest.kernel_release
    assert shell(booted.machine, "findmnt -no FSTYPE /") == "overlay"


def test_no_unit_failed_and_the_modules_reached_it(booted: Booted) -> None:
    assert shell(booted.machine, "hostname") == "deb13"
    assert shell(booted.machine, "systemctl --failed --no-legend --plain") == ""
    assert shell(booted.machine, "systemctl is-active ssh") == "active"
