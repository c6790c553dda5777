"""dnsmasq, which gives nodes addresses, names and their first file: its configuration, and the process itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.run import CommandFailed, run, tied, tool
from provisioner.netboot.templates import render
from provisioner.siteconf import SiteConfig

PURPOSE = "give the nodes addresses and boot files"
START_SECONDS = 15.0
STOP_SECONDS = 5.0
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before the n-th restart in a row
STEADY_SECONDS = 60.0  # one that lived this long starts the row anew


def write_config(folder: Path, config: SiteConfig, more: Path) -> Path:
    """Write dnsmasq.conf into ``folder`` (state/netboot) and return its path.

    ``more`` is the site's own folder of additions (config/dnsmasq.d/NAME.conf), which need not be there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = render(
        "dnsmasq.conf.j2",
        interface=config.interface,
        domain=config.domain,
        range_start=config.range_start,
        range_end=config.range_end,
        netmask=str(config.network.prefixlen if config.six else config.network.netmask),
        six=int(config.six),
        host=config.host,
        folder=str(folder),
        more=str(more) if more.is_dir() else "",
        base=config.plain_url,
    )
    path = folder / "dnsmasq.conf"
    atomic_write(path, text.encode())
    return path


def write_hosts(folder: Path, names: Iterable[tuple[str, str]]) -> bool:
    """Write the (MAC, host name) of every node; True when that changed the file, which asks for a reload."""
    # Stock dnsmasq strips the domain of a dotted name, so only the first part is ever written.
    text = "".join(f"{mac.lower()},{host}\n" for mac, host in sorted(names)).encode()
    path = folder / "dhcp-hosts"
    if path.exists() and path.read_bytes() == text:
        return False
    atomic_write(path, text)
    return True


def check_config(conf: Path) -> None:
    """Have dnsmasq read a configuration without acting on it. Raises CapsulekitError naming the line it refuses."""
    try:
        run(["dnsmasq", "--test", f"--conf-file={conf}"], purpose=PURPOSE, timeout=30)
    except CommandFailed as refused:
        said = refused.output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise CapsulekitError(
            f"dnsmasq refuses its configuration: {said[0].removeprefix('dnsmasq:').strip()}",
            hint="check address, range and domain in site.toml, and the files in dnsmasq.d beside it",
        ) from refused


@dataclass
class Dnsmasq:
    """The supervised process: started, restarted with growing pauses when it dies, stopped for good by ``stop``.

    ``log`` is called with an event's name and its fields; ``address`` is where dnsmasq answers for names.
    """

    conf: Path
    address: str
    log: Callable[..., None]
    restarts: int = 0
    # A name that only this process knows: another name server on the address must not pass for it.
    _mark: str = field(default_factory=lambda: f"{secrets.token_hex(8)}.capsulekit.invalid")
    _process: asyncio.subprocess.Process | None = None
    _keeper: asyncio.Task[None] | None = None
    _said: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start and return once it answers. Raises CapsulekitError with dnsmasq's own reason when it does not."""
        await self._spawn()
        end = time.monotonic() + START_SECONDS
        while not await asyncio.to_thread(answers, self.address, self._mark):
            if self.pid is None:
                await asyncio.sleep(0.1)  # its last words may still be in the pipe
                why = self._last_words()
                busy = "another DHCP, DNS or TFTP server runs on this machine? Stop it, or keep it off this interface"
                raise CapsulekitError(f"dnsmasq does not start: {why}", hint=busy if "in use" in why else None)
            if time.monotonic() > end:
                await self._end()
                raise CapsulekitError(f"dnsmasq did not answer on {self.address} within {START_SECONDS:.0f} s")
            await asyncio.sleep(0.05)
        self._keeper = asyncio.create_task(self._keep())

    def reload(self) -> None:
        """Have it read its lists of hosts again (HUP); the main file it reads only at a start."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGHUP)

    async def stop(self) -> None:
        """End it and wait until it is gone."""
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()

    async def _spawn(self) -> None:
        # Not by run(): that waits for the end. tied() has the kernel end it when we die without a chance to.
        argv = [*tied("TERM", PURPOSE), tool("dnsmasq", PURPOSE), f"--conf-file={self.conf}"]
        argv.append(f"--host-record={self._mark},{self.address}")
        self._process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is for us, we then stop it in order
        )
        self._reader = asyncio.create_task(self._listen(self._process))

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what it says, one log line each."""
        assert process.stderr
        while line := await process.stderr.readline():
            text = line.decode("utf-8", "replace").strip()
            if not text:
                continue
            self._said = [*self._said[-9:], text]
            self.log("dnsmasq", says=text)

    async def _keep(self) -> None:
        """Restart it whenever it dies."""
        in_a_row, born = 0, time.monotonic()
        while True:
            assert self._process
            status = await self._process.wait()
            in_a_row = 0 if time.monotonic() - born > STEADY_SECONDS else in_a_row
            pause = BACKOFF[min(in_a_row, len(BACKOFF) - 1)]
            self.log("dnsmasq-died", status=status, reason=self._last_words(), restart_in=pause)
            await asyncio.sleep(pause)
            in_a_row, born = in_a_row + 1, time.monotonic()
            try:
                await self._spawn()
            except (CapsulekitError, OSError) as error:
                self.log("error", message=f"dnsmasq can't be restarted: {error}")
                continue
            self.restarts += 1
            self.log("dnsmasq-restarted", pid=self.pid, restarts=self.restarts)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._reader

    def _last_words(self) -> str:
        return self._said[-1].removeprefix("dnsmasq: ") if self._said else "it printed nothing"


def answers(address: str, name: str, port: int = 53, timeout: float = 0.5) -> bool:
    """True when a name server there knows an address of its own family for ``name`` (RFC 1035 4.1, RFC 3596 2.1)."""
    number = os.urandom(2)
    family, kind = (socket.AF_INET6, 28) if ":" in address else (socket.AF_INET, 1)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = number + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(timeout)
        try:
            s.connect((address, port))
            s.send(query)
            reply = s.recv(512)
        except OSError:
            return False
    return reply[:2] == number and reply[6:8] != b"\0\0"  # bytes 6 and 7 count the answers
