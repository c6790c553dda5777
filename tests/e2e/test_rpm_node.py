"""A capsule of RPM packages, PXE-booted and handed over by kexec like any other: its own kernel, programs, accounts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from e2e_bench import Bench, shell

from capsulekit.capsule.manifest import Manifest, loads
from capsulekit.capsule.read import open_capsule
from provisioner.lab.qemu import Node as Machine

BOOT = 420.0  # seconds; emulation on two busy cores

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not all(map(shutil.which, ("dnf", "rpmbuild", "createrepo_c"))), reason="needs dnf, rpm, createrepo-c"
    ),
]


@dataclass
class Booted:
    """The node when it was ready, and what its capsule says of itself."""

    machine: Machine
    manifest: Manifest


@pytest.fixture(scope="module")
def capsule() -> Path:
    """Built from the distribution made on the spot."""
    return built.rpm().capsule


@pytest.fixture(scope="module")
def booted(bench: Bench, capsule: Path) -> Iterator[Booted]:
    """A node added by MAC with the capsule, switched on, ready, with a shell on the serial console."""
    with open_capsule(capsule) as opened:
        manifest = loads(opened.read_member("capsule.toml"))
    bench.site.command("vnfs", "import", str(capsule))
    machine = bench.lab.node("52:54:00:E2:E0:04", memory=512)
    bench.site.command("node", "add", machine.machine.mac, "rpm0.new")
    bench.site.command("node", "set", "vnfs", f"{manifest.name}-{manifest.version}.{manifest.arch}", "rpm0")
    machine.start()
    try:
        bench.site.wait_ready(machine.machine.mac, BOOT)
        yield Booted(machine, manifest)
    finally:
        machine.stop()


def test_the_node_runs_the_kernel_out_of_the_kernel_packages(booted: Booted) -> None:
    assert shell(booted.machine, "uname -r") == booted.manifest.kernel_release


def test_its_root_is_the_distribution_with_what_the_scriptlets_made(booted: Booted) -> None:
    assert "Rocky Linux 9" in shell(booted.machine, "cat /etc/os-release")
    assert shell(booted.machine, "cat /var/lib/timed/post") == "post of timed, 1 installed, as 0"
    assert shell(booted.machine, "stat -c %U:%G /var/lib/timed /var/lib/brokerd").split() == [
        "timed:timed",
        "brokerd:brokerd",
    ]


def test_modules_and_the_database_of_packages_are_where_they_belong(booted: Booted) -> None:
    assert shell(booted.machine, "ls /var/lib/rpm") == "rpmdb.sqlite"
    assert shell(booted.machine, "readlink /lib") == "usr/lib"
    assert shell(booted.machine, "grep -c squashfs /lib/modules/$(uname -r)/modules.dep").isdecimal()


def test_the_hostname_module_reached_it(booted: Booted) -> None:
    assert shell(booted.machine, "hostname").split(".")[0] == "rpm0"
