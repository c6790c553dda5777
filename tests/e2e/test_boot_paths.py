"""Every way from a machine's firmware to stage 1, on real machines: none of them has a disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from e2e_bench import SMALL, shell

from provisioner.lab.lab import Lab
from provisioner.lab.qemu import Medium
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite
from provisioner.registry.model import Event, Node

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU: run ./setup.sh test"),
]
BOOT = 420.0  # seconds; emulation on two busy cores
SMALL_386 = "test-busybox-1.i386"
MAC = "52:54:00:B0:07:{:02X}"
CHAINED, IDLE = MAC.format(1), MAC.format(0xF1)
# Settings of OVMF, the firmware: parts of its network stack that are off.
NO_PXE = tuple(
    word
    for name in ("IPv4PXESupport", "IPv6PXESupport", "IPv6Support")
    for word in ("-fw_cfg", f"name=opt/org.tianocore/{name},string=no")
)
# QEMU's cards all have an iPXE with HTTP as their boot program, which would get our script at once, and undionly.kpxe
# asks in just the same words. So this one card is made to get undionly.kpxe, by its MAC, until that was sent to it.
FORCE = "dhcp-hostsfile={file}\ndhcp-boot=tag:forced,undionly.kpxe\n"


@dataclass
class Bench:
    """A lab and its site, and the machines on it."""

    lab: Lab
    site: LabSite

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return (self.lab.workdir / "serve.log").read_text()

    def reached(self, machine: Machine, state: str) -> Node:
        """Wait until the machine said a state; a picture of its screen is kept when it does not."""

        def is_it(_node: Node, events: list[Event]) -> bool:
            return any(event.state == state for event in events)

        with pictured(machine):
            return self.site.wait(machine.machine.mac, is_it, BOOT, state)


def until(what: Callable[[], bool], seconds: float) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.5)


def lit_pixels(picture: Path) -> int:
    """How many pixels of a PPM picture are not black."""
    data = picture.read_bytes()
    head = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", data)
    assert head, data[:20]
    pixels = data[head.end() :]
    assert len(pixels) == 3 * int(head[1]) * int(head[2])
    return sum(pixels[at : at + 3] != b"\0\0\0" for at in range(0, len(pixels), 3))


@contextmanager
def pictured(machine: Machine) -> Iterator[None]:
    """When the block fails, keep what the machine's screen shows beside its console's log."""
    try:
        yield
    except Exception as error:
        if machine.running:
            error.add_note(f"its screen: {machine.screenshot(machine.folder / 'screen.png')}")
        error.add_note(f"its serial console: {machine.folder / 'console.log'}")
        raise


@contextmanager
def a_site(folder: Path, address: str = "10.78.0.1/24") -> Iterator[Bench]:
    """A served site whose new nodes boot the small capsule; it has stage 1 for amd64 only."""
    with Lab(folder / "lab", address) as lab:
        site = LabSite(folder / "site")
        site.init(lab, built.stage1(), "--default-vnfs", SMALL)
        site.command("trust", "add", f"{built.author_key()}.pub")
        site.command("vnfs", "import", str(built.capsule(built.BUSYBOX)))
        forced = lab.workdir / "forced"
        forced.write_text(f"{CHAINED.lower()},set:forced\n")
        more = site.paths.config / "dnsmasq.d"
        more.mkdir()
        (more / "forced.conf").write_text(FORCE.format(file=forced))
        lab.serve(site.paths)
        yield Bench(lab, site)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with a_site(Path(tmp_path_factory.mktemp("paths"))) as made:
        yield made


# --- BIOS and UEFI by PXE


@pytest.fixture(scope="module")
def chained(bench: Bench) -> Iterator[Machine]:
    """BIOS with two cards, of which the second boots; its own iPXE has to load ours."""
    machine = bench.lab.node(CHAINED, memory=512, nic="e1000", before=[(IDLE, "virtio-net-pci")])
    machine.start()
    with pictured(machine):
        until(lambda: "/undionly.kpxe to " in bench.log, 120)
    (bench.lab.workdir / "forced").write_text("")
    found = re.search(r" ready .*dnsmasq-pid=(\d+)", bench.log)
    assert found
    os.kill(int(found[1]), signal.SIGHUP)
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def uefi(bench: Bench, chained: Machine) -> Iterator[Machine]:
    """UEFI whose card has no boot program: the firmware's own PXE runs. On the second core beside the first."""
    machine = bench.lab.node(MAC.format(2), memory=512, firmware="uefi", rom=False)
    machine.start()
    yield machine
    machine.stop()


def sent_to(bench: Bench, node: Node) -> list[str]:
    """The files that a node got by TFTP, in their order."""
    return re.findall(rf"dnsmasq-tftp\[\d+\]: sent \S+/(\S+) to {re.escape(node.ipaddr)}\"", bench.log)


def test_stage_1_talks_on_serial_console_and_screen(bench: Bench, chained: Machine, uefi: Machine) -> None:
    with pictured(chained):
        chained.console.expect(r"capsulekit: stage 1", BOOT)
        until(lambda: "capsulekit: stage 1" in chained.screen_text(), 30)
        assert lit_pixels(chained.screenshot(chained.folder / "screen.ppm")) > 1000


def test_bios_loads_undionly_and_that_our_script(bench: Bench, chained: Machine) -> None:
    node = bench.reached(chained, "handoff")
    assert sent_to(bench, node)[:2] == ["undionly.kpxe", "chain.ipxe"]


def test_of_two_cards_the_one_that_booted_is_used(bench: Bench, chained: Machine) -> None:
    registry = bench.site.registry
    events = registry.events(CHAINED)
    registry.close()
    network = next(event.detail for event in events if event.step == "network" and event.status == "ok")
    # It is the second one on the bus, hence the name; the first was never asked an address for.
    assert re.search(r" on eth1$", network), network
    assert IDLE.lower() not in bench.log


def test_uefi_firmware_loads_ipxe_by_its_own_pxe_and_the_node_gets_ready(bench: Bench, uefi: Machine) -> None:
    node = bench.reached(uefi, "ready")
    assert sent_to(bench, node)[-2:] == ["ipxe.efi", "chain.ipxe"]
    assert shell(uefi, "ls -d /sys/firmware/efi /sys/class/block/sd* 2>&1").startswith("/sys/firmware/efi")


# --- a 32-bit processor, and images


@pytest.fixture(scope="module")
def old(bench: Bench) -> Iterator[Machine]:
    """A machine with a 32-bit processor."""
    machine = bench.lab.node(MAC.format(3), memory=512, arch="i386", cpu="pentium3")
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def image(bench: Bench) -> Path:
    """The site's boot image."""
    bench.site.command("stage1", "iso", "-o", str(bench.lab.workdir / "site.iso"))
    return bench.lab.workdir / "site.iso"


@pytest.fixture(scope="module")
def from_cd(bench: Bench, old: Machine, image: Path) -> Iterator[Machine]:
    """BIOS with the image as a CD; its card boots nothing. Beside the 32-bit one."""
    machine = bench.lab.node(MAC.format(4), memory=512, medium=Medium(image, "cd"))
    machine.start()
    yield machine
    machine.stop()


def test_a_processor_that_the_site_has_no_stage_1_for_is_told_so_on_the_screen(bench: Bench, old: Machine) -> None:
    with pictured(old):
        until(lambda: "has an i386 processor, and this site has no stage 1 for i386" in old.screen_text(), BOOT)


def test_it_boots_once_the_site_has_it(bench: Bench, old: Machine, from_cd: Machine) -> None:
    bench.site.command("init", "--stage1", str(built.stage1_i386()))
    bench.site.command("vnfs", "import", str(built.busybox_i386()))
    bench.site.command("node", "add", old.machine.mac, "old.new")
    bench.site.command("node", "set", "vnfs", SMALL_386, "old")
    old.reset()  # it would ask again after a minute
    bench.reached(old, "ready")
    assert shell(old, "uname -m") == "i686"


def test_a_cd_boots_without_pxe_and_gets_its_ticket_by_tls(bench: Bench, from_cd: Machine) -> None:
    node = bench.reached(from_cd, "handoff")
    assert sent_to(bench, node) == []
    assert f"ticket mac={from_cd.machine.mac} addr={node.ipaddr}" in bench.log
    assert not re.search(rf"addr={re.escape(node.ipaddr)} method=GET path=/(v1/boot.ipxe|boot/)", bench.log)


# --- UEFI by HTTP, and from a stick


@pytest.fixture(scope="module")
def by_http(bench: Bench, image: Path) -> Iterator[Machine]:
    """UEFI that has only HTTP boot: its PXE is off, so that it does not have to run into its time-outs first."""
    machine = bench.lab.node(MAC.format(5), memory=512, firmware="uefi", rom=False, extra=NO_PXE)
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def from_stick(bench: Bench, by_http: Machine, image: Path) -> Iterator[Machine]:
    """UEFI with the image on a USB stick. Beside the one by HTTP."""
    machine = bench.lab.node(MAC.format(6), memory=512, firmware="uefi", medium=Medium(image, "usb"))
    machine.start()
    yield machine
    machine.stop()


def test_uefi_http_boot_gets_ipxe_and_the_boot_script(bench: Bench, by_http: Machine, from_stick: Machine) -> None:
    node = bench.reached(by_http, "init")
    assert "ipxe.efi" not in sent_to(bench, node)
    assert re.search(r"method=HEAD path=/boot/ipxe\.efi status=200", bench.log)
    assert re.search(r"method=GET path=/boot/ipxe\.efi status=200", bench.log)
    assert f"ticket mac={by_http.machine.mac} addr={node.ipaddr}" in bench.log


def test_a_usb_stick_boots_uefi_without_pxe(bench: Bench, from_stick: Machine) -> None:
    node = bench.reached(from_stick, "init")
    assert sent_to(bench, node) == []
    assert f"ticket mac={from_stick.machine.mac} addr={node.ipaddr}" in bench.log


# --- a network without IPv4


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A site whose network has IPv6 addresses and no other."""
    with a_site(Path(tmp_path_factory.mktemp("six")), "fd00:78::1/64") as made:
        yield made


def test_a_node_boots_where_there_is_no_ipv4(six: Bench) -> None:
    machine = six.lab.node(MAC.format(7), memory=512, **SIX)
    machine.start()
    try:
        node = six.reached(machine, "handoff")
    finally:
        machine.stop()
    # The address is made of the announced prefix and the MAC (RFC 4291, appendix A); the ticket was bound to it.
    assert node.ipaddr == "fd00:78::5054:ff:feb0:707"
    assert f"ticket mac={machine.machine.mac} addr={node.ipaddr}" in six.log
    assert not re.search(r"addr=\d+\.\d+", six.log)
