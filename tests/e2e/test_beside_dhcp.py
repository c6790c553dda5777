"""Machines on a network where another server gives the addresses; they boot a capsule made for Perceus."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from e2e_bench import shell
from netns import join, namespace
from own_programs import copy_programs
from perceus_capsule import perceus_capsule

from provisioner.lab.lab import Lab
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite
from provisioner.registry.model import Event, Node

pytestmark = pytest.mark.timeout(1200)
BOOT = 420.0  # seconds; emulation on two busy cores
BIOS, UEFI = "52:54:00:BE:51:01", "52:54:00:BE:51:02"
OTHER = "10.78.0.2/24"
AGREED, SILENT = "oldos-1.2-3.amd64", "oldos-silent"
SCRIPTS = {
    "init/60-early.sh": b'#!/bin/sh\necho "init of $NODENAME" >>"$NEWROOT/etc/perceus-ran"\n',
    "ready/60-late.sh": b'#!/bin/sh\necho "ready of $NODENAME" >>"$NEWROOT/etc/perceus-ran"\n',
}


@dataclass
class Bench:
    """A lab, its site, and what the other DHCP server says."""

    lab: Lab
    site: LabSite
    other: Path

    @property
    def log(self) -> str:
        """What our server has said so far."""
        return (self.lab.workdir / "serve.log").read_text()

    def address_of(self, mac: str) -> str:
        """What the other server gave to a machine."""
        given = re.findall(rf"DHCPACK\(\S+\) (\S+) {mac.lower()}", self.other.read_text())
        assert given and len(set(given)) == 1, given
        return str(given[0])

    def sent_to(self, address: str) -> list[str]:
        """The files that a machine got from us by TFTP, in their order."""
        return re.findall(rf"dnsmasq-tftp\[\d+\]: sent \S+/(\S+) to {re.escape(address)}\"", self.log)


def old_capsule(folder: Path) -> Path:
    """The small capsule's root with its kernel, as chroot2stateless.sh would have packed it."""
    capsule, tree = folder / "small", folder / "tree"
    capsule.mkdir()
    subprocess.run(["tar", "xf", built.capsule(built.BUSYBOX), "-C", capsule], check=True)
    for layer in ("modules", "rootfs"):
        argv = ["unsquashfs", "-q", "-n", "-f", "-d", tree, capsule / f"layers/{layer}.squashfs"]
        subprocess.run(argv, check=True, capture_output=True)
    release = tomllib.loads((capsule / "capsule.toml").read_text())["kernel"]["release"]
    (tree / "boot").mkdir()
    shutil.copy(capsule / "boot/vmlinuz", tree / f"boot/vmlinuz-{release}")
    (tree / "lib64").symlink_to("usr/lib64")
    copy_programs(tree, ["usr/bin/setfacl"])
    return perceus_capsule(folder / "oldos-1.2-3.stateless.x86_64.vnfs", tree, release, SCRIPTS)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A site with `dhcp = "proxy"`, and a dnsmasq on another machine of its network, which knows nothing of us."""
    folder = Path(tmp_path_factory.mktemp("beside"))
    with Lab(folder / "lab", "10.78.0.1/24") as lab, namespace() as elsewhere:
        join(elsewhere, "eth0", lab.network.namespace, "other0", address=OTHER)
        link = ["ip", "-n", lab.network.namespace, "link", "set", "other0", "master", lab.network.bridge]
        subprocess.run(link, check=True)
        site = LabSite(folder / "site")
        site.init(lab, built.stage1(), "--dhcp", "proxy")
        lab.serve(site.paths)
        words = ["-k", "-u", "root", "-C", "/dev/null", "-p", "0", "-x", "", "-i", "eth0", "--no-ping", "-8", "-"]
        words += ["-F", "10.78.0.210,10.78.0.220,1h", "-l", str(folder / "other.leases")]
        with (folder / "other.log").open("wb") as log:
            argv = ["ip", "netns", "exec", elsewhere, "dnsmasq", *words]
            other = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield Bench(lab, site, folder / "other.log")
        finally:
            other.terminate()
            other.wait()


@pytest.fixture(scope="module")
def machines(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """One by BIOS whose admin agreed to the scripts of its converted capsule, and one by UEFI whose admin did not.

    The card of the second has no boot program: the firmware's own PXE must find the answers of both servers.
    """
    capsule = str(old_capsule(Path(tmp_path_factory.mktemp("perceus"))))
    bench.site.command("vnfs", "import", capsule, "-y", "--with-scripts")
    bench.site.command("vnfs", "import", capsule, "-y", "--as", SILENT)
    for mac, name, vnfs in ((BIOS, "agreed", AGREED), (UEFI, "silent", SILENT)):
        bench.site.command("node", "add", mac, f"{name}.new")
        bench.site.command("node", "set", "vnfs", vnfs, name)
    made = bench.lab.node(BIOS, memory=512), bench.lab.node(UEFI, memory=512, firmware="uefi", rom=False)
    for machine in made:
        machine.start()
    yield made
    for machine in made:
        machine.stop()


def test_bios_boots_with_an_address_of_the_other_server_and_our_boot_file(
    bench: Bench, machines: tuple[Machine, Machine]
) -> None:
    node = bench.site.wait_ready(BIOS, BOOT)
    assert node.ipaddr == bench.address_of(BIOS)
    assert bench.sent_to(node.ipaddr) == ["chain.ipxe"]


def test_the_own_pxe_of_uefi_firmware_does_too(bench: Bench, machines: tuple[Machine, Machine]) -> None:
    node = bench.site.wait_ready(UEFI, BOOT)
    assert node.ipaddr == bench.address_of(UEFI) != bench.address_of(BIOS)
    assert bench.sent_to(node.ipaddr)[-2:] == ["ipxe.efi", "chain.ipxe"]
    with contextlib.closing(bench.site.registry) as registry:
        assert registry.leases() == [], "no address is ours"


def test_a_converted_capsule_is_what_perceus_had_made(machines: tuple[Machine, Machine]) -> None:
    for machine in machines:
        machine.console.expect(r"busybox capsule up on [^\r]*\r", 60)
        shell(machine, "dmesg -n 1")
        assert "ramdisk_blocksize=1024 console=ttyS0" in shell(machine, "cat /proc/cmdline")
        # What it says is on the network lies in its layers.
        assert int(shell(machine, "wc -c </usr/share/doc/busybox-static/copyright")) > 1000


def test_its_scripts_run_in_their_states_where_the_admin_agreed_and_nowhere_else(
    bench: Bench, machines: tuple[Machine, Machine]
) -> None:
    agreed, silent = machines

    def ran(_node: Node, events: list[Event]) -> bool:
        return any(event.step == "ready/vnfs/60-late.sh" and event.status == "ok" for event in events)

    bench.site.wait(BIOS, ran, 120, "its script for ready")
    assert shell(agreed, "cat /etc/perceus-ran").splitlines() == ["init of agreed.new", "ready of agreed.new"]
    told = bench.site.command("module", "show", "--for", "agreed")
    assert [name in told for name in ("50-local.sh", "60-early.sh", "60-late.sh")] == [True] * 3
    assert bench.site.command("module", "show", "--for", "silent") == "silent: nothing runs\n"
    assert shell(silent, "cat /etc/perceus-ran 2>/dev/null || echo none") == "none"
    bench.site.wait(UEFI, lambda node, _e: node.status == "ready", 10, "ready all the while")
