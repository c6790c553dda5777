"""A node boots a capsule whose kernel was swapped, and then edited: initrd and modules are the new kernel's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import built
import kernel_packages
import pytest
from e2e_bench import SMALL, shell

from provisioner.lab.lab import Lab
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite
from provisioner.registry.model import Event, Node

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU: run ./setup.sh test"),
]
BOOT = 420.0  # seconds; emulation on two busy cores
MAC = "52:54:00:E2:EC:01"


def swapped(site: LabSite, folder: Path) -> None:
    """Another kernel from a package, and on top of it an edit with a driver that no package of it brings."""
    site.command("vnfs", "kernel", SMALL, "--from", str(kernel_packages.deb("13")))
    site.command("mount", SMALL, "--at", str(folder / "at"))
    (driver,) = (folder / "at/lib/modules").rglob("dummy.ko*")
    updates = folder / "at/lib/modules" / kernel_packages.release_in(kernel_packages.deb("13")) / "updates"
    updates.mkdir()
    driver.rename(updates / driver.name.replace("dummy", "mine"))
    site.command("umount", SMALL)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A node that is up with the swapped kernel."""
    folder = Path(tmp_path_factory.mktemp("swapped"))
    with Lab(folder / "lab") as lab:
        site = LabSite(folder / "site")
        site.init(lab, built.stage1(), "--default-vnfs", SMALL)
        site.command("trust", "add", f"{built.author_key()}.pub")
        site.command("vnfs", "import", str(built.capsule(built.BUSYBOX)))
        swapped(site, folder)
        lab.serve(site.paths)
        machine = lab.node(MAC, memory=512)
        machine.start()

        def is_ready(_node: Node, events: list[Event]) -> bool:
            return any(event.state == "ready" for event in events)

        site.wait(MAC, is_ready, BOOT, "ready")
        yield machine
        machine.stop()


def test_the_node_runs_the_new_kernel_with_its_own_modules(node: Machine) -> None:
    assert shell(node, "uname -r") == kernel_packages.release_in(kernel_packages.deb("13"))
    loaded = shell(node, "cut -d' ' -f1 /proc/modules").split()
    assert {"overlay", "squashfs", "loop"} <= {*loaded, *shell(node, "ls /sys/module").split()}


def test_a_driver_from_an_edit_is_found_and_loads(node: Machine) -> None:
    assert "dummy" not in shell(node, "cut -d' ' -f1 /proc/modules").split()
    shell(node, "modprobe mine")
    assert "dummy" in shell(node, "cut -d' ' -f1 /proc/modules").split(), "the driver's own name for itself"
