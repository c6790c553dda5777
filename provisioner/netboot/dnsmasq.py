"""dnsmasq, which gives nodes addresses, names and their first file: its configuration, and a process of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.run import CommandFailed, run, tied, tool

PURPOSE = "give the nodes addresses and boot files"
START_SECONDS = 15.0
STOP_SECONDS = 5.0
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before the n-th restart in a row
STEADY_SECONDS = 60.0  # one that lived this long starts the row anew


def check_config(conf: Path) -> None:
    """Have dnsmasq read a configuration without acting on it. Raises CapsulekitError naming the line it refuses."""
    try:
        run(["dnsmasq", "--test", f"--conf-file={conf}"], purpose=PURPOSE, timeout=60)
    except CommandFailed as refused:
        said = refused.output.strip().splitlines()[-1:] or ["it printed nothing"]
        raise CapsulekitError(
            f"dnsmasq refuses its configuration: {said[0].removeprefix('dnsmasq:').strip()}",
            hint="check address, range and domain in site.toml, networks.toml, and the files in dnsmasq.d beside them",
        ) from refused


@dataclass
class Dnsmasq:
    """A supervised process: started, restarted with growing pauses when it dies, stopped for good by ``stop``.

    ``log`` is called with an event's name and its fields; ``address`` is where it answers for names, "" when it does
    not.
    """

    conf: Path
    address: str
    log: Callable[..., None]
    does: str = "addresses"  # the word for it in the log
    restarts: int = 0
    died: float = 0.0  # when it last ended by itself, epoch seconds; 0 is never
    last_words: str = ""  # what it said then
    # A name that only this process knows: another name server on the address must not pass for it.
    _mark: str = field(default_factory=lambda: f"{secrets.token_hex(8)}.capsulekit.invalid")
    _process: asyncio.subprocess.Process | None = None
    _keeper: asyncio.Task[None] | None = None
    _said: list[str] = field(default_factory=list)
    _up: bool = False

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start and return once it serves. Raises CapsulekitError with dnsmasq's own reason when it does not."""
        await self._spawn()
        end = time.monotonic() + START_SECONDS
        while not await self._serves():
            if self.pid is None:
                await asyncio.sleep(0.1)  # its last words may still be in the pipe
                why = self._last_words()
                busy = "another DHCP, DNS or TFTP server runs on this machine? Stop it, or keep it off this interface"
                raise CapsulekitError(f"dnsmasq does not start: {why}", hint=busy if "in use" in why else None)
            if time.monotonic() > end:
                await self._end()
                raise CapsulekitError(f"dnsmasq ({self.does}) did not come up within {START_SECONDS:.0f} s")
            await asyncio.sleep(0.05)
        self._keeper = asyncio.create_task(self._keep())

    async def again(self) -> None:
        """End it and start it with its main file as that is now. Raises CapsulekitError when it then does not start."""
        await self.stop()
        await self.start()

    async def revive(self) -> None:
        """Start it after a failure; where that fails too it is tried again like one that died."""
        try:
            await self.start()
        except CapsulekitError:
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

    async def _serves(self) -> bool:
        if self.address:
            return await asyncio.to_thread(answers, self.address, self._mark)
        # Its first words, said once its sockets are there.
        return self.pid is not None and self._up

    async def _spawn(self) -> None:
        # Not by run(): that waits for the end. tied() has the kernel end it when we die without a chance to.
        argv = [*tied("TERM", PURPOSE), tool("dnsmasq", PURPOSE), f"--conf-file={self.conf}"]
        if self.address:
            argv.append(f"--host-record={self._mark},{self.address}")
        self._up = False
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
            self._up = self._up or " started, version " in text
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
            self.died, self.last_words = time.time(), self._last_words()
            self.log("dnsmasq-died", status=status, does=self.does, reason=self.last_words, restart_in=pause)
            await asyncio.sleep(pause)
            in_a_row, born = in_a_row + 1, time.monotonic()
            try:
                await self._spawn()
            except (CapsulekitError, OSError) as error:
                self.log("error", message=f"dnsmasq can't be restarted: {error}")
                continue
            self.restarts += 1
            self.log("dnsmasq-restarted", pid=self.pid, does=self.does, restarts=self.restarts)

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


def release(server: str, mac: str, address: str) -> None:
    """Give a lease back in the name of the machine that has it (RFC 2131, 4.4.6); IPv4 only.

    ``server`` is our own address on the wire, whose dnsmasq takes this as the machine's own word.
    """
    options = b"\x63\x82\x53\x63" + bytes([53, 1, 7, 54, 4]) + socket.inet_aton(server) + b"\xff"
    head = struct.pack(">BBBBIHH", 1, 1, 6, 0, secrets.randbits(32), 0, 0)
    packet = head + socket.inet_aton(address) + bytes(12) + bytes.fromhex(mac.replace(":", "")) + bytes(202) + options
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(packet, (server, 67))
