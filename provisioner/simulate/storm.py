"""A whole run: pretend nodes are added, so many at once boot and poll, and are taken away again whatever happened."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from capsulekit.errors import CapsulekitError, PartialError, UsageError
from capsulekit.sitepaths import SitePaths
from provisioner import pki
from provisioner.netboot import stage1
from provisioner.registry.registry import Registry
from provisioner.simulate import pretend
from provisioner.simulate.node import Master, PretendNode, Stopped
from provisioner.simulate.tally import Tally
from provisioner.simulate.wire import Address, Failed, Unreachable, Wire
from provisioner.siteconf import SiteConfig, load_site
from provisioner.smallbuffers import small_tls_buffers

TICKETS_AT_ONCE, TICKETS_PER_SECOND = 60, 5  # what the server gives one address (server/context.py)
GONE_SECONDS = 5.0  # a master that takes no connection for so long is gone
FILES_OF_A_NODE = 4
SPARE_FILES = 64
STOPPED = "stopped by a signal"
GONE = "the master stopped answering"


@dataclass(frozen=True)
class Storm:
    """What is asked for. Times are seconds."""

    nodes: int
    at_once: int
    polls: int = 3
    interval: float = 1.0
    duration: float | None = None  # instead of ``polls``: how long each node goes on polling
    fetch: bool = False
    keep: bool = False
    vnfs: str = ""
    group: str = ""
    url: str = ""  # another master of the site than this one


@dataclass
class Run:
    """A storm under way."""

    storm: Storm
    master: Master
    own_addresses: bool
    tally: Tally = field(default_factory=Tally)
    ended: str = ""  # why it ends early
    _ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def go(self) -> None:
        """Until all are through, a signal comes or the master goes; no request is left under way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.end, STOPPED)
        numbers = iter(range(self.storm.nodes))
        await asyncio.gather(*(self._place(numbers) for _ in range(min(self.storm.at_once, self.storm.nodes))))

    def end(self, why: str) -> None:
        """Begin no more; what is under way comes to its end."""
        self.ended = self.ended or why
        self._ending.set()

    async def _place(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            if self.ended:
                return
            # 127.128.0.0/16 is this machine's own, every address of it.
            source = f"127.128.{number >> 8}.{number & 255}" if self.own_addresses else ""
            node = PretendNode(self.master, pretend.mac_of(number), source, self.tally)
            self.tally.begun += 1
            try:
                await self._live(node)
            except Stopped:
                if self.ended == GONE:
                    self.tally.failed(GONE)
            except Failed as failed:
                self.tally.failed(str(failed))
                if isinstance(failed, Unreachable) and not self.ended and not await _answers(self.master, GONE_SECONDS):
                    self.end(GONE)
            finally:
                node.close()

    async def _live(self, node: PretendNode) -> None:
        await node.boot()
        end = time.monotonic() + (self.storm.duration or 0.0)
        for number in count():
            over = number >= self.storm.polls if self.storm.duration is None else time.monotonic() >= end
            if over or self.ended:
                return
            # As the agent: 3/4 to 5/4 of its interval.
            with suppress(TimeoutError):
                pause = self.storm.interval * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
                await asyncio.wait_for(self._ending.wait(), pause)
            await node.poll()


def simulate(
    paths: SitePaths, registry: Registry, storm: Storm, watch: Callable[[Tally], None] = lambda _: None
) -> dict[str, Any]:
    """Run it, and take every pretend node away afterwards; returns the figures. ``watch`` is called now and then.

    Raises CapsulekitError when it can't begin: no master answers, another one runs, there is no capsule.
    """
    config = load_site(paths)
    master, here = _master(paths, config, storm)
    _allow_files(storm.at_once)
    small_tls_buffers()
    vnfs = pretend.capsule_for(paths, registry, storm.vnfs)
    with pretend.alone(paths):
        asyncio.run(_require(master))
        run: list[Run] = []
        start = time.monotonic()
        with _added(paths, registry, storm, vnfs):
            start = time.monotonic()
            asyncio.run(_watched(storm, master, here, run, watch))
        [done] = run
    return done.tally.record(storm.nodes, time.monotonic() - start) | {"ended": done.ended, "own_addresses": here}


def verdict(record: dict[str, Any]) -> None:
    """Raise what a run that did not go well ends with."""
    failed, nodes = record["failed"], record["nodes"]
    if record["ended"] == GONE:
        raise PartialError(
            f"{GONE}: {record['ready']} of {nodes} pretend nodes were ready by then", hint="its log says why"
        )
    if failed:
        raise PartialError(f"{failed} of {nodes} pretend nodes failed", hint="the master's log says more of each")
    if record["ended"]:
        raise CapsulekitError(f"{record['ended']}: {record['begun']} of {nodes} pretend nodes had begun")


def how_long(storm: Storm) -> float:
    """The least seconds that the limit for one address makes a run last."""
    return max(0.0, (storm.nodes - TICKETS_AT_ONCE) / TICKETS_PER_SECOND)


def is_here(storm: Storm, config: SiteConfig) -> bool:
    """Whether the master is this machine, so that every pretend node can have an address of its own."""
    host, _ = _host_port(storm, config)
    if ":" in host:
        return False
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


@contextmanager
def _added(paths: SitePaths, registry: Registry, storm: Storm, vnfs: str) -> Iterator[None]:
    pretend.remove(paths, registry)  # of a run that was killed
    added = 0
    try:
        pretend.add(paths, registry, storm.nodes, vnfs, storm.group)
        added = storm.nodes
        yield
    finally:
        pretend.remove(paths, registry, added)


async def _watched(
    storm: Storm, master: Master, here: bool, run: list[Run], watch: Callable[[Tally], None]
) -> None:  # fmt: skip
    made = Run(storm, master, here)
    # The nodes look whether the run goes on, and the run is only now there.
    made.master = Master(**{**vars(master), "stopped": lambda: bool(made.ended)})
    run.append(made)
    going = asyncio.create_task(made.go())
    while not going.done():
        await asyncio.wait([going], timeout=0.5)
        watch(made.tally)
    await going


def _master(paths: SitePaths, config: SiteConfig, storm: Storm) -> tuple[Master, bool]:
    host, port = _host_port(storm, config)
    try:
        tls = ssl.create_default_context(cafile=str(pki.ca_path(paths)))
    except (OSError, ssl.SSLError) as error:
        raise CapsulekitError(
            f"can't read the site's CA {pki.ca_path(paths)}: {error}", hint="try it as root"
        ) from error
    arch = next(iter(stage1.installed(paths)), "amd64")
    plain, secure = Address(host, port), Address(host, config.tls_port, tls)
    return Master(plain, secure, storm.fetch, storm.keep, arch), is_here(storm, config)


def _host_port(storm: Storm, config: SiteConfig) -> tuple[str, int]:
    """Of the plain half. Raises UsageError for a URL that can't be one."""
    if not storm.url:
        return config.ip, config.http_port
    try:
        parts = urlsplit(storm.url)
        host, port = str(ip_address(parts.hostname or "")), parts.port or config.http_port
        if parts.scheme != "http" or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
            raise ValueError
    except ValueError:
        raise UsageError(f"--master {storm.url!r} is not http://ADDRESS[:PORT]") from None
    return host, port


async def _require(master: Master) -> None:
    for to in (master.plain, master.tls):
        wire = Wire(to, "", Tally())
        try:
            answer = await wire.get("healthz", "/healthz")
        except Failed as failed:
            scheme = "https" if to.tls else "http"
            why = str(failed).removeprefix("healthz: ")
            raise CapsulekitError(
                f"no master answers at {scheme}://{to.netloc}: {why}", hint="start it: capsulekit serve"
            ) from failed
        if answer.status != 200:
            raise CapsulekitError(f"the master at {to.netloc} is not well: {answer.status} {answer.line}")


async def _answers(master: Master, seconds: float) -> bool:
    """Whether the master still takes connections."""
    end = time.monotonic() + seconds
    while True:
        try:
            await Wire(master.plain, "", Tally()).get("healthz", "/healthz")
            return True
        except Failed as failed:
            if not isinstance(failed, Unreachable) or time.monotonic() > end:
                return not isinstance(failed, Unreachable)
        await asyncio.sleep(0.2)


def _allow_files(at_once: int) -> None:
    """Take the open files that so many connections need. Raises UsageError when the machine allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = at_once * FILES_OF_A_NODE + SPARE_FILES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        most = (hard - SPARE_FILES) // FILES_OF_A_NODE
        raise UsageError(f"--at-once {at_once} needs {wanted} open files, {hard} are allowed", hint=f"--at-once {most}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
