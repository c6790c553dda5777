"""The running server's record, state/serve.json: how other commands find it, tell it something and see its answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.sitepaths import SitePaths

if TYPE_CHECKING:
    from provisioner.netboot.manager import NetworkManager
    from provisioner.nfs.manager import NfsManager

ANSWER_SECONDS = 60.0
KEEP_SECONDS = 0.5  # how soon a changed state, such as a crash of dnsmasq, is in the record
START = "start it: capsulekit serve"


def record_file(paths: SitePaths) -> Path:
    """Where the record is."""
    return paths.state / "serve.json"


def write_record(paths: SitePaths, since: float, more: Mapping[str, Any]) -> None:
    """Write that this process serves the site since then (epoch seconds); nobody else's business is in it."""
    who = {"pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname(), "since": since}
    atomic_write(record_file(paths), (json.dumps({**who, **more}, indent=1) + "\n").encode(), 0o600)


@dataclass
class Record:
    """The record as its server keeps it."""

    paths: SitePaths
    manager: NetworkManager
    nfs: NfsManager
    since: float = field(default_factory=time.time)
    reloads: int = 0
    error: str = ""  # why the last reload was refused, "" when it was not
    hint: str = ""
    done: str = ""  # what the last reload did to dnsmasq
    _written: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def keep(self) -> None:
        """Write the record, and again whenever it differs, until cancelled."""
        while True:
            await asyncio.to_thread(self.write)
            await asyncio.sleep(KEEP_SECONDS)

    async def answer(self, hup: asyncio.Event, notify: Callable[[str], None]) -> None:
        """Reload at every ``hup``, until cancelled. ``notify`` tells systemd (sd_notify(3))."""
        from provisioner.server.log import log

        while True:
            await hup.wait()
            hup.clear()
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self.error = self.hint = self.done = ""
            try:
                self.done = await self.manager.reload()
                log("reloaded", dnsmasq=self.done)
            except (CapsulekitError, OSError) as error:
                self.error, self.hint = str(error), getattr(error, "hint", None) or ""
                log("error", message=f"not reloaded: {self.error}", hint=self.hint or None)
            self.reloads += 1
            await asyncio.to_thread(self.write)
            notify("READY=1")

    def write(self) -> None:
        """Write what changed since the last time. From any thread: an older look never comes after a newer one."""
        with self._lock:
            now = self.manager.status() | {
                "nfs": self.nfs.status(),
                "reloads": self.reloads, "reload_error": self.error, "reload_hint": self.hint, "reload_done": self.done,
            }  # fmt: skip
            if now != self._written:
                write_record(self.paths, self.since, now)
                self._written = now

    def remove(self) -> None:
        """Serving ends."""
        record_file(self.paths).unlink(missing_ok=True)


def running_server(paths: SitePaths) -> dict[str, Any] | None:
    """The record of the server that runs on this machine, or None. Raises CapsulekitError when it runs elsewhere."""
    record = _read(paths)
    if record is None:
        return None
    if record.get("host") != socket.gethostname():
        raise CapsulekitError(f"this site is served by the machine {record.get('host')!r}", hint="ask there")
    pid = record.get("pid")
    alive = type(pid) is int and pid > 1 and record.get("started") == _started(pid)
    return record if alive else None


def reload_server(paths: SitePaths) -> dict[str, Any]:
    """Have the running server take on its settings; its record afterwards. Raises CapsulekitError with its refusal."""
    record = running_server(paths)
    if record is None:
        raise CapsulekitError("no server runs for this site", hint=START)
    try:
        os.kill(record["pid"], signal.SIGHUP)
    except ProcessLookupError:
        raise CapsulekitError("the server has just ended", hint=START) from None
    end = time.monotonic() + ANSWER_SECONDS
    while (now := running_server(paths)) is not None and now["reloads"] <= record["reloads"]:
        if time.monotonic() > end:
            raise CapsulekitError(f"the server (process {record['pid']}) did not answer within {ANSWER_SECONDS:g} s")
        time.sleep(0.05)
    if now is None:
        raise CapsulekitError("the server ended instead of reloading: its log says why", hint=START)
    if now["reload_error"]:
        raise CapsulekitError(
            f"the server goes on as before: {now['reload_error']}", hint=now.get("reload_hint") or None
        )
    return now


def _read(paths: SitePaths) -> dict[str, Any] | None:
    try:
        record = json.loads(record_file(paths).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CapsulekitError(
            f"{record_file(paths)} is damaged", hint="remove it and start the server again"
        ) from error
    return record if isinstance(record, dict) else None


def _started(pid: int) -> int:
    """When a process began, in clock ticks since boot (proc(5), stat, 22): a number used again is told from the first.

    0 when there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The second field is the program's name in parentheses and may hold anything.
    return int(text.rpartition(")")[2].split()[19])


def status_lines(record: Mapping[str, Any]) -> list[str]:
    """A record for people: ``Key: value`` lines."""
    lines = [
        f"Server: running, process {record['pid']}, since {_date(record['since'])}",
        f"Dnsmasq: {_process(record['dnsmasq'])}",
        f"Dnsmasq for names: {_process(record['resolver'])}",
        f"DHCP: {record['dhcp']}, {record.get('leases', 0)} leases",
    ]
    for net in record["networks"]:
        where = f"on {net['interface']}" if net["interface"] else "through a relay"
        pool = f", {net['first']}-{net['last']} for new machines" if net["first"] else ""
        lines.append(f"Network: {net['name']} {net['network']} {where}{pool}")
    lines += _nfs_lines(record["nfs"])
    if record["reload_error"]:
        lines.append(f"Reload: refused: {record['reload_error']}")
    return lines + [f"Problem: {problem}" for problem in record["problems"]]


def _nfs_lines(nfs: Mapping[str, Any]) -> list[str]:
    """What is exported, and by whom."""
    server = {"ganesha": "nfs-ganesha", "kernel": "the kernel's server"}.get(nfs["server"], "off")
    if nfs["ganesha"]:
        server += f" {_process(nfs['ganesha'])}"
    number = len(nfs["exports"])
    lines = [f"NFS: {server}, {number} hybrid layer{'' if number == 1 else 's'} exported"]
    if nfs["transfer"]:
        lines.append(f"Transfer: by NFS from {nfs['transfer']}, {nfs['offered']} files")
    return lines + [f"Problem: {problem}" for problem in nfs["problems"]]


def _process(keeper: Mapping[str, Any]) -> str:
    text = f"running, process {keeper['pid']}" if keeper["pid"] else "NOT RUNNING, it will be started again"
    if keeper["restarts"] or keeper["died"]:
        times = f"{keeper['restarts']} restart{'' if keeper['restarts'] == 1 else 's'}"
        text += f"; {times}, last died {_date(keeper['died'])}: {keeper['last_words']}"
    return text


def _date(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch)) if epoch else "never"
