"""Every way from a machine's firmware to stage 1, on real machines: none of them has a disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import built
import pytest
from e2e_bench import SMALL, shell

from capsulekit.errors import CapsulekitError
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
FORCE = f"dhcp-mac=set:forced,{CHAINED.lower()}\ndhcp-boot=tag:forced,undionly.kpxe\n"


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
        """Wait until the machine said a state; a picture of its screen is kept when it does not.

        One that has said ``init`` has its plan, the same road from there for all: it makes room for the next.
        """

        def is_it(_node: Node, events: list[Event]) -> bool:
            return any(event.state == state for event in events)

        with pictured(machine):
            node = self.site.wait(machine.machine.mac, is_it, BOOT, state)
        if state == "init":
            machine.stop()
        return node


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
        # A machine that does not answer must not hide what went wrong.
        with suppress(CapsulekitError, OSError):
            error.add_note(f"its screen: {machine.screenshot(machine.folder / 'screen.png')}")
        error.add_note(f"its serial console: {machine.folder / 'console.log'}")
        raise


@pytest.mark.parametrize("answers", [True, False])
def test_a_failure_keeps_a_picture_of_the_screen(answers: bool, tmp_path: Path) -> None:
    class Screen:
        folder = tmp_path

        def screenshot(self, path: Path) -> Path:
            if not answers:
                raise CapsulekitError("the machine does not answer")
            path.write_bytes(b"picture")
            return path

    with pytest.raises(TimeoutError, match="never ready") as failed, pictured(cast(Machine, Screen())):
        raise TimeoutError("never ready")
    notes = [f"its screen: {tmp_path / 'screen.png'}"] * answers + [f"its serial console: {tmp_path / 'console.log'}"]
    assert failed.value.__notes__ == notes
    assert (tmp_path / "screen.png").exists() == answers


@contextmanager
def a_site(folder: Path, stage1: Path, address: str = "10.78.0.1/24") -> Iterator[Bench]:
    """A served site whose new nodes boot the small capsule; it has this one stage 1."""
    with Lab(folder / "lab", address) as lab:
        site = LabSite(folder / "site")
        site.init(lab, stage1, "--default-vnfs", SMALL)
        site.command("trust", "add", f"{built.author_key()}.pub")
        site.command("vnfs", "import", str(built.capsule(built.BUSYBOX)))
        more = site.paths.config / "dnsmasq.d"
        more.mkdir()
        (more / "forced.conf").write_text(FORCE)
        lab.serve(site.paths)
        yield Bench(lab, site)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with a_site(Path(tmp_path_factory.mktemp("paths")), built.generic()) as made:
        yield made


# --- BIOS and UEFI by PXE


@pytest.fixture(scope="module")
def old(bench: Bench) -> Iterator[Machine]:
    """A machine with a 32-bit processor."""
    machine = bench.lab.node(MAC.format(3), memory=512, arch="i386", cpu="pentium3")
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def chained(bench: Bench, old: Machine) -> Iterator[Machine]:
    """BIOS with two cards, of which the second boots; its own iPXE has to load ours. Stage 1 is the generic one.

    Once it has that, the site gets the smaller one, which is for virtual machines, for all that follow. Beside the
    32-bit one.
    """
    machine = bench.lab.node(CHAINED, memory=768, nic="e1000", before=[(IDLE, "virtio-net-pci")])
    machine.start()
    with pictured(machine):
        until(lambda: "/undionly.kpxe to " in bench.log, 120)
        # dnsmasq reads such lines at its start; the server starts it again, before undionly.kpxe gets to ask.
        (bench.site.paths.config / "dnsmasq.d" / "forced.conf").unlink()
        found = re.search(r" ready .*dnsmasq-pid=(\d+)", bench.log)
        assert found
        os.kill(int(found[1]), signal.SIGTERM)
        until(lambda: "path=/boot/site.img" in bench.log, 120)
    bench.site.command("init", "--stage1", str(built.stage1()))
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


def test_a_processor_that_the_site_has_no_stage_1_for_is_told_so_on_the_screen(old: Machine, chained: Machine) -> None:
    with pictured(old):
        until(lambda: "no stage 1 for this machine's processor (i386) at this site" in old.screen_text(), BOOT)
    old.stop()


def test_stage_1_talks_on_serial_console_and_screen(bench: Bench, chained: Machine, uefi: Machine) -> None:
    with pictured(chained):
        chained.console.expect(r"capsulekit: stage 1", BOOT)
        until(lambda: "capsulekit: stage 1" in chained.screen_text(), 30)
        assert lit_pixels(chained.screenshot(chained.folder / "screen.ppm")) > 1000


def test_bios_loads_undionly_and_that_our_script(bench: Bench, chained: Machine) -> None:
    node = bench.reached(chained, "init")
    assert sent_to(bench, node)[:2] == ["undionly.kpxe", "chain.ipxe"]


def test_of_two_cards_the_one_that_booted_is_used(bench: Bench, chained: Machine) -> None:
    registry = bench.site.registry
    events = registry.events(CHAINED)
    registry.close()
    network = next(event.detail for event in events if event.step == "network" and event.status == "ok")
    link = re.search(r"e1000: (eth[01]) NIC Link is Up", chained.console.text)
    assert link and network.endswith(f" on {link[1]}")
    # The other one has a driver too, and no address was asked for on it.
    assert "no driver in this stage 1" not in chained.console.text
    assert IDLE.lower() not in bench.log


def test_uefi_firmware_loads_ipxe_by_its_own_pxe_and_the_node_gets_ready(bench: Bench, uefi: Machine) -> None:
    node = bench.reached(uefi, "ready")
    assert sent_to(bench, node)[-2:] == ["ipxe.efi", "chain.ipxe"]
    assert "efi" in shell(uefi, "ls /sys/firmware").split()
    disks = shell(uefi, "ls /sys/class/block").split()
    assert not [name for name in disks if not name.startswith("loop")], disks
    uefi.stop()


# --- a 32-bit processor, and images


@pytest.fixture(scope="module")
def image(bench: Bench) -> Path:
    """The site's boot image, made before the site has a stage 1 for i386."""
    bench.site.command("stage1", "iso", "-o", str(bench.lab.workdir / "site.iso"))
    return bench.lab.workdir / "site.iso"


@pytest.fixture(scope="module")
def helped(bench: Bench, image: Path, old: Machine) -> Machine:
    """The same machine, on again after the site got a stage 1 and a capsule for it."""
    bench.site.command("init", "--stage1", str(built.stage1_i386()))
    bench.site.command("vnfs", "import", str(built.busybox_i386()))
    bench.site.command("node", "add", old.machine.mac, "old.new")
    bench.site.command("node", "set", "vnfs", SMALL_386, "old")
    old.start()
    return old


@pytest.fixture(scope="module")
def from_cd(bench: Bench, image: Path, helped: Machine) -> Iterator[Machine]:
    """BIOS with the image as a CD; its card boots nothing. Beside the 32-bit one."""
    machine = bench.lab.node(MAC.format(4), memory=512, medium=Medium(image, "cd"))
    machine.start()
    yield machine
    machine.stop()


def test_a_cd_boots_without_pxe_and_gets_its_ticket_by_tls(bench: Bench, from_cd: Machine) -> None:
    node = bench.reached(from_cd, "init")
    assert sent_to(bench, node) == []
    assert f"ticket mac={from_cd.machine.mac} addr={node.ipaddr}" in bench.log
    assert not re.search(rf"addr={re.escape(node.ipaddr)} method=GET path=/(v1/boot.ipxe|boot/)", bench.log)


def test_a_32_bit_processor_boots_its_own_stage_1_and_capsule(bench: Bench, helped: Machine) -> None:
    bench.reached(helped, "ready")
    assert shell(helped, "uname -m") == "i686"
    helped.stop()


def test_an_image_says_when_it_has_nothing_for_the_processor(bench: Bench, image: Path) -> None:
    # It was made before this site had a stage 1 for i386.
    machine = bench.lab.node(MAC.format(8), memory=128, arch="i386", cpu="pentium3", medium=Medium(image, "cd"))
    machine.start()
    try:
        with pictured(machine):
            machine.console.expect(r"no stage 1 for this machine's processor \(i386\) in this image", 120)
    finally:
        machine.stop()


# --- UEFI by HTTP, from a stick, and a network without IPv4


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


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, from_stick: Machine) -> Iterator[tuple[Bench, Machine]]:
    """A site whose network has IPv6 addresses and no other, and a machine there. Beside those two."""
    with a_site(Path(tmp_path_factory.mktemp("six")), built.stage1(), "fd00:78::1/64") as made:
        machine = made.lab.node(MAC.format(7), memory=512)
        machine.start()
        yield made, machine


def test_uefi_http_boot_gets_ipxe_and_the_boot_script(
    bench: Bench, by_http: Machine, six: tuple[Bench, Machine]
) -> None:
    node = bench.reached(by_http, "init")
    assert "ipxe.efi" not in sent_to(bench, node)
    assert re.search(r"method=HEAD path=/boot/ipxe\.efi status=200", bench.log)
    assert re.search(r"method=GET path=/boot/ipxe\.efi status=200", bench.log)
    assert f"ticket mac={by_http.machine.mac} addr={node.ipaddr}" in bench.log


def test_a_usb_stick_boots_uefi_without_pxe(bench: Bench, from_stick: Machine) -> None:
    node = bench.reached(from_stick, "init")
    assert sent_to(bench, node) == []
    assert f"ticket mac={from_stick.machine.mac} addr={node.ipaddr}" in bench.log


def test_a_node_boots_where_there_is_no_ipv4(six: tuple[Bench, Machine]) -> None:
    there, machine = six
    node = there.reached(machine, "ready")
    machine.stop()
    # The address is made of the announced prefix and the MAC (RFC 4291, appendix A); the ticket is bound to it.
    assert node.ipaddr == "fd00:78::5054:ff:feb0:707"
    assert f"ticket mac={machine.machine.mac} addr={node.ipaddr}" in there.log
    assert "ticket-refused" not in there.log
    assert not re.search(r"addr=\d+\.\d+", there.log)
