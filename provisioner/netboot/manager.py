"""The network manager: keeps dnsmasq's files in step with the registry and the site, and the registry with the leases.

It looks several times a second whether anything changed, which costs one small query and a few ``stat``; what changed
is read, tried by dnsmasq itself, written, and dnsmasq told in the least disturbing way that works.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot import files
from provisioner.netboot.config import config_text, names_text
from provisioner.netboot.dnsmasq import Dnsmasq, release
from provisioner.netboot.hosts import Names, NamesSource, plan_names, read_hosts
from provisioner.netboot.interfaces import require_address
from provisioner.netboot.leases import FoundLease, LeaseFile
from provisioner.netboot.networks import Network, load_networks
from provisioner.netboot.upstream import upstream_file, upstream_servers
from provisioner.registry.registry import Registry
from provisioner.siteconf import SiteConfig, load_site

LOOK_SECONDS = 0.25
# Where other servers give the addresses, nodes' reports say which, and a report is no change of the registry's.
REPORTS_SECONDS = 5.0
# A boot storm gives hundreds of leases a second: their names are gathered for so long, and for ten times as long as it
# takes to make the lists.
LEASES_SECONDS = 0.5
# dnsmasq compares each lease with each line of its list of hosts when it reads that: 2.5 s for 10 000. It has this many
# seconds, per thousand nodes squared, for its clients before it must read again.
PAUSE_SECONDS = 0.1
AGAIN_SECONDS = 5.0  # after a failure
# What a running server can't take on: its sockets, its certificate and its registry hang on them.
FIXED_KEYS = ("interface", "address", "http_port", "tls_port", "registry")


@dataclass
class NetworkManager:
    """One site's dnsmasq for addresses and boot files, its dnsmasq for names, and their files, in ``state/netboot``.

    ``log`` is called with an event's name and its fields, ``on_config`` with the new settings after a reload.
    """

    paths: SitePaths
    config: SiteConfig
    registry: Registry
    log: Callable[..., None]
    on_config: Callable[[SiteConfig], None] = lambda _: None
    networks: tuple[Network, ...] = ()
    problems: tuple[str, ...] = ()
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    _seen: object = None  # what _state() was when the lists were last made
    _made: float = 0.0  # when that was, monotonic
    _took: float = 0.0  # seconds
    _new_leases: bool = False
    _hosts: int = 0  # how many nodes the list has
    _hosts_unread: bool = False  # dhcp-hosts was changed and dnsmasq was not told yet
    _hosts_pause: float = 0.0  # until when, monotonic, it is not told

    def __post_init__(self) -> None:
        self.folder: Path = self.paths.state / "netboot"
        self.dnsmasq = Dnsmasq(self.folder / files.MAIN, "", self.log)
        self.resolver = Dnsmasq(self.folder / files.NAMES_MAIN, self.config.ip, self.log, "names")
        self._leases = LeaseFile(self.folder / "leases")

    async def start(self) -> None:
        """Write the files and start both processes. Raises CapsulekitError when something can't work."""
        await asyncio.to_thread(self._prepare)
        await self.dnsmasq.start()
        await self.resolver.start()

    async def stop(self) -> None:
        """End both processes and wait until they are gone."""
        await self.resolver.stop()
        await self.dnsmasq.stop()

    async def run(self) -> None:
        """Follow what changes until cancelled; what goes wrong is logged, kept in ``problems``, and tried again."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), LOOK_SECONDS)
            self.wake.clear()
            try:
                async with self._busy:
                    await self._follow()
            except (CapsulekitError, OSError) as error:
                self._seen = None
                self._name((f"what changed did not reach dnsmasq: {error}",))
                await asyncio.sleep(AGAIN_SECONDS)

    async def reload(self) -> str:
        """Take on site.toml, networks.toml, dnsmasq.d, the hosts file and resolv.conf as they are; says what was done.

        Raises CapsulekitError when they can't work: everything then goes on as it was.
        """
        async with self._busy:
            config, networks = await asyncio.to_thread(self._reread)
            state = await asyncio.to_thread(self._state, config)
            names, texts = await asyncio.to_thread(self._texts, config, networks)
            wanted = files.changed(self.folder, texts)
            if wanted:
                await asyncio.to_thread(files.try_files, texts)
            restarts = {files.MAIN, files.NAMES_MAIN} & set(wanted)
            if restarts:
                await self._restart(wanted)
            elif wanted:
                await asyncio.to_thread(files.write_files, self.folder, wanted)
                self._tell(wanted, at_once=True)
            self.config, self.networks, self._seen = config, networks, state
            self.on_config(config)
            await asyncio.to_thread(self._finish, names)
            return "restarted" if restarts else "reloaded" if wanted else "unchanged"

    def status(self) -> dict[str, Any]:
        """What ``serve status`` prints of it."""
        networks = [vars(net) | {"network": str(net.network)} for net in self.networks]
        return {
            "dhcp": self.config.dhcp,
            "networks": networks,
            "problems": list(self.problems),
            "dnsmasq": self.dnsmasq.status(),
            "resolver": self.resolver.status(),
        }

    # --- the files

    def _prepare(self) -> None:
        self.networks = _networks(self.paths, self.config)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._seen = self._state(self.config)
        if self.config.dhcp == "own":
            self._leases.look()
        names, texts = self._texts(self.config, self.networks)
        files.try_files(texts)
        files.write_files(self.folder, files.changed(self.folder, texts))
        now = time.time()
        over = [lease for lease in self.registry.leases() if lease.expires < now]  # they ended while nobody served
        gone = [FoundLease(lease.nodeid, lease.address, lease.hostname, lease.expires) for lease in over]
        self._tell_registry(list(self._leases.known.values()), gone)
        self._finish(names, tell=False)

    def _texts(self, config: SiteConfig, networks: Sequence[Network]) -> tuple[Names, dict[str, str]]:
        """Every file as it should be now."""
        begin = time.monotonic()
        names = self._names(config, networks)
        self._took = time.monotonic() - begin
        own, more = {net.address for net in networks}, self.paths.config / "dnsmasq.d"
        servers = upstream_servers(config.dns_upstream, own)
        return names, {
            files.MAIN: config_text(config, networks, self.folder, more),
            files.NAMES_MAIN: names_text(config, networks, self.folder, more),
            files.HOSTS: names.dhcp,
            files.NAMES: names.dns,
            files.UPSTREAM: "".join(f"server={server}\n" for server in servers),
        }

    def _names(self, config: SiteConfig, networks: Sequence[Network]) -> Names:
        gives = config.dhcp == "own"
        nodes = self.registry.nodes()
        self._hosts = len(nodes)
        return plan_names(
            NamesSource(
                nodes=nodes,
                networks=networks,
                hosts=read_hosts(Path(config.hosts_file)) if config.hosts_file else (),
                hosts_file=config.hosts_file,
                leases=list(self._leases.known.values()) if gives else (),
                master=socket.gethostname(),
                gives=gives,
            )
        )

    def _finish(self, names: Names, *, tell: bool = True) -> None:
        """After the files: leases that are in a node's way are given back, problems are named."""
        self._made, self._new_leases = time.monotonic(), False
        for lease in names.release if tell else ():
            self._release(lease)
        self._name(names.problems)

    def _release(self, lease: FoundLease) -> None:
        # Through a relay or not: dnsmasq takes it for what arrives on the wire that has this address of ours.
        server = next((net.address for net in self.networks if net.address and net.has_host(lease.address)), "")
        if ":" not in lease.address:
            self.log("lease-taken-back", mac=lease.mac, addr=lease.address)
            release(server or self.config.ip, lease.mac, lease.address)

    # --- what changed

    async def _follow(self) -> None:
        if self.config.dhcp == "own":
            new, gone = await asyncio.to_thread(self._leases.look)
            if new or gone:
                self._new_leases = True
                await asyncio.to_thread(self._tell_registry, new, gone)
        state = await asyncio.to_thread(self._state, self.config)
        age = time.monotonic() - self._made
        late = (self._new_leases and age > max(LEASES_SECONDS, 10 * self._took)) or (
            self.config.dhcp != "own" and age > REPORTS_SECONDS
        )
        if state == self._seen and not late:
            self._tell(())
            return
        self._seen = state  # from before the nodes are read: what changes meanwhile is seen at the next look
        names, wanted = await asyncio.to_thread(self._lists)
        self._tell(wanted)
        await asyncio.to_thread(self._finish, names)

    def _tell(self, wanted: Collection[str], *, at_once: bool = False) -> None:
        """Have the processes read the lists that changed: names now, hosts when dnsmasq had time for its clients."""
        if {files.NAMES, files.UPSTREAM} & set(wanted):
            self.resolver.reload()
        self._hosts_unread = self._hosts_unread or files.HOSTS in wanted
        if self._hosts_unread and (at_once or time.monotonic() > self._hosts_pause):
            self.dnsmasq.reload()
            self._hosts_unread = False
            self._hosts_pause = time.monotonic() + PAUSE_SECONDS * (self._hosts / 1000) ** 2

    def _lists(self) -> tuple[Names, dict[str, str]]:
        """Write the lists that changed; names are read at once, the others that changed are returned."""
        names, texts = self._texts(self.config, self.networks)
        del texts[files.MAIN], texts[files.NAMES_MAIN]  # an addition that changed waits for a reload
        wanted = files.changed(self.folder, texts)
        if files.NAMES in wanted:
            files.write_files(self.folder, {files.NAMES: wanted.pop(files.NAMES)})
            self.resolver.reload()
        if wanted:
            files.try_files(wanted)
            files.write_files(self.folder, wanted)
        return names, wanted

    async def _restart(self, wanted: Mapping[str, str]) -> None:
        """Write files and start whose main file changed anew; where that fails, the old files and processes."""
        old = {name: (self.folder / name).read_text(encoding="utf-8") for name in wanted}
        begun: list[Dnsmasq] = []
        await asyncio.to_thread(files.write_files, self.folder, wanted)
        try:
            for name, process in ((files.MAIN, self.dnsmasq), (files.NAMES_MAIN, self.resolver)):
                if name in wanted:
                    begun.append(process)
                    await process.again()
        except CapsulekitError:
            await asyncio.to_thread(files.write_files, self.folder, old)
            for process in begun:
                await process.stop()
                await process.revive()
            raise
        self._tell(wanted, at_once=True)

    def _reread(self) -> tuple[SiteConfig, tuple[Network, ...]]:
        config = load_site(self.paths)
        for key in FIXED_KEYS:
            if getattr(config, key) != getattr(self.config, key):
                raise CapsulekitError(
                    f"{key} was changed in site.toml, which a running server can't take on",
                    hint="stop capsulekit serve and start it again; nothing else was taken on either",
                )
        return config, _networks(self.paths, config)

    def _state(self, config: SiteConfig) -> object:
        """Another value as soon as a node, the hosts file or resolv.conf was changed."""
        watched = [Path(config.hosts_file) if config.hosts_file else None, upstream_file(config.dns_upstream)]
        return (self.registry.last_change(), *(_stamp(path) for path in watched if path))

    def _tell_registry(self, new: Sequence[FoundLease], gone: Sequence[FoundLease]) -> None:
        """All in one transaction: a boot storm gives hundreds of leases a second."""
        with self.registry.db.write():
            for lease in gone:
                self.registry.drop_lease(lease.mac, lease.address)
            for lease in new:
                self.registry.record_lease(lease.mac, lease.address, lease.hostname, lease.expires)

    def _name(self, problems: tuple[str, ...]) -> None:
        """Keep what is wrong, and log what was not wrong before."""
        for problem in problems:
            if problem not in self.problems:
                self.log("warning", message=problem)
        self.problems = problems


def _networks(paths: SitePaths, config: SiteConfig) -> tuple[Network, ...]:
    """The networks, their interfaces and our addresses there being real."""
    networks = load_networks(paths, config)
    for net in networks:
        if net.interface:
            require_address(net.interface, net.address)
    return networks


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
