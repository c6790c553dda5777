"""A node in QEMU under software emulation: boots from the lab's bridge or a medium, serial console on a socket."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.run import tool
from provisioner.lab.console import Console

Firmware = Literal["bios", "uefi"]
Arch = Literal["amd64", "i386"]
OVMF = Path("/usr/share/OVMF")
PROGRAMS = {"amd64": "qemu-system-x86_64", "i386": "qemu-system-i386"}
# What today's distributions ask for (x86-64-v2), and of AMD, for which the kernel needs no page tables of its own: with
# "max", all that can be emulated, it takes a fifth more time from power-on to ready.
CPUS = {"amd64": "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf_lm", "i386": "max"}
VGA_TEXT, VGA_TEXT_SIZE = 0xB8000, 32 * 1024  # where a VGA card keeps its text: pairs of character and colour


@dataclass(frozen=True)
class Card:
    """One network card, its cable in ``tap``; without ``rom`` it has no boot program of its own (QEMU's is an iPXE)."""

    mac: str
    tap: str
    model: str = "virtio-net-pci"
    rom: bool = True


@dataclass(frozen=True)
class Medium:
    """An image the machine starts from instead of the network: as a CD, or written to a USB stick."""

    image: Path
    kind: Literal["cd", "usb"]


@dataclass(frozen=True)
class Machine:
    """What a node is made of: ``memory`` in MB; ``kernel`` skips the firmware (kernel, initrd, command line).

    It boots from ``card``, unless there is a ``medium``; ``before`` are cards that the bus shows first and that boot
    nothing. ``cpu`` is QEMU's name of one, "" what is in CPUS. There is no disk.
    """

    card: Card
    memory: int = 1024
    firmware: Firmware = "bios"
    cpus: int = 1
    kernel: tuple[Path, Path, str] | None = None
    extra: tuple[str, ...] = ()
    arch: Arch = "amd64"
    cpu: str = ""
    before: tuple[Card, ...] = ()
    medium: Medium | None = None

    @property
    def mac(self) -> str:
        """The address of the card that boots."""
        return self.card.mac


def qemu_argv(machine: Machine, folder: Path) -> list[str]:
    """The whole command line; sockets and copies of firmware variables lie in ``folder``."""
    # Software emulation, always: /dev/kvm may exist in a nested guest and still hang every machine.
    argv = [tool(PROGRAMS[machine.arch], "run a lab's nodes"), "-name", machine.mac.replace(":", "-")]
    # A small translation buffer: after kexec every store to a page that ever held translated code is slow, and with
    # the default size unpacking a 33 MB initrd took 40 s instead of 0.7 s (a small buffer is flushed often).
    accel = "tcg,tb-size=64" + (",thread=multi" if machine.cpus > 1 else "")
    argv += ["-accel", accel, "-machine", "pc", "-cpu", machine.cpu or CPUS[machine.arch]]
    argv += ["-m", str(machine.memory), "-smp", str(machine.cpus), "-display", "none", "-no-user-config", "-nodefaults"]
    argv += ["-vga", "std", "-rtc", "base=utc"]
    for number, card in enumerate((*machine.before, machine.card)):
        argv += _card_words(card, number, boots=card is machine.card and machine.medium is None)
    if machine.medium:
        argv += _medium_words(machine.medium)
    argv += ["-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"]
    # wait=on: the guest starts once the console is listened to, so its first line is never lost.
    argv += ["-chardev", f"socket,id=serial0,path={folder / 'serial'},server=on,wait=on", "-serial", "chardev:serial0"]
    argv += ["-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
    if machine.kernel:
        kernel, initrd, cmdline = machine.kernel
        argv += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline]
    if machine.firmware == "uefi":
        argv += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}"]
        argv += ["-drive", f"if=pflash,format=raw,unit=1,file={folder / 'OVMF_VARS.fd'}"]
    return [*argv, *machine.extra]


def _card_words(card: Card, number: int, *, boots: bool) -> list[str]:
    device = f"{card.model},netdev=net{number},mac={card.mac.lower()}"
    device += ",bootindex=1" if boots else ""
    # The firmware runs every card's boot program, not only that of the one it shall boot from.
    device += "" if boots and card.rom else ",romfile="
    return ["-netdev", f"tap,id=net{number},ifname={card.tap},script=no,downscript=no", "-device", device]


def _medium_words(medium: Medium) -> list[str]:
    drive = f"if=none,id=medium,format=raw,readonly=on,file={medium.image}"
    if medium.kind == "cd":
        return ["-drive", f"{drive},media=cdrom", "-device", "ide-cd,drive=medium,bootindex=0"]
    return ["-drive", drive, "-device", "qemu-xhci", "-device", "usb-storage,drive=medium,bootindex=0"]


class Node:
    """One machine: start, watch ``console``, stop. ``spawn`` starts a program on the lab's network."""

    def __init__(
        self, machine: Machine, folder: Path, spawn: Callable[[Sequence[str], Path], subprocess.Popen[bytes]]
    ) -> None:
        self.machine = machine
        self.folder = folder
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The serial console; raises UsageError before ``start``."""
        if self._console is None:
            raise UsageError(f"node {self.machine.mac} was not started")
        return self._console

    @property
    def running(self) -> bool:
        """Whether the machine is on."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Power on; raises CapsulekitError when QEMU does not come up."""
        if self.running:
            raise UsageError(f"node {self.machine.mac} is running already")
        self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.machine.firmware == "uefi":
            shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", self.folder / "OVMF_VARS.fd")
        for name in ("serial", "qmp"):
            (self.folder / name).unlink(missing_ok=True)
        self._process = self._spawn(qemu_argv(self.machine, self.folder), self.folder / "qemu.log")
        self._wait_for(self.folder / "serial")
        self._console = Console(self.folder / "serial", self.folder / "console.log")
        # QEMU goes on only now, and makes this one.
        self._wait_for(self.folder / "qmp")

    def stop(self) -> None:
        """Pull the plug; fine when it is off."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run one command of the QEMU machine protocol and return its answer; raises CapsulekitError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(10)
            channel.connect(str(self.folder / "qmp"))
            with channel.makefile("rw", encoding="utf-8") as lines:
                lines.readline()  # the greeting
                for name, given in (("qmp_capabilities", {}), (command, arguments)):
                    lines.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                    lines.flush()
                    answer = _answer(lines.readline)
        if "error" in answer:
            raise CapsulekitError(f"QEMU refused {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def screenshot(self, path: Path) -> Path:
        """Write what a monitor on the machine would show, as PNG or PPM by the name; returns ``path``."""
        self.qmp("screendump", filename=str(path), format=path.suffix.removeprefix(".").lower())
        return path

    def screen_text(self) -> str:
        """The characters in the VGA card's text memory, line by line; of use while it shows text and no picture."""
        memory = self.folder / "vga.bin"
        self.qmp("pmemsave", val=VGA_TEXT, size=VGA_TEXT_SIZE, filename=str(memory))
        letters = memory.read_bytes()[::2].decode("cp437").replace("\0", " ")
        return "\n".join(letters[at : at + 80].rstrip() for at in range(0, len(letters), 80))

    def _wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + 30
        while not path.exists():
            if not self.running or time.monotonic() > deadline:
                log = (self.folder / "qemu.log").read_text(errors="replace").strip()
                self.stop()
                raise CapsulekitError(f"QEMU did not start: {log or 'it printed nothing'}")
            time.sleep(0.02)

    def _forget(self) -> None:
        """Close the console but keep its text readable."""
        if self._console is not None:
            self._console.close()


def _answer(readline: Callable[[], str]) -> dict[str, Any]:
    """The next answer, past events."""
    while line := readline():
        message: dict[str, Any] = json.loads(line)
        if "event" not in message:
            return message
    raise CapsulekitError("QEMU closed its control socket")
