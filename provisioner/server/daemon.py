"""``capsulekit serve``: two listening sockets and dnsmasq, started in order, stopped in order, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.sitepaths import SitePaths
from provisioner import pki
from provisioner.catalog import site_catalog
from provisioner.hostkeys import ensure_cluster_key
from provisioner.netboot import ipxe
from provisioner.netboot.interfaces import require_address
from provisioner.netboot.leases import LeaseFile
from provisioner.netboot.manager import NetworkManager
from provisioner.netboot.siteimg import SiteImage
from provisioner.netboot.stage1 import require_stage1
from provisioner.nfs.manager import NfsManager
from provisioner.registry.history import Actor
from provisioner.registry.registry import open_registry
from provisioner.server.app import AccessLog, make_app
from provisioner.server.askers import Askers
from provisioner.server.context import Site
from provisioner.server.desk import Desk
from provisioner.server.log import log
from provisioner.server.record import Record
from provisioner.siteconf import SiteConfig, load_site
from provisioner.smallbuffers import small_tls_buffers
from provisioner.vnfs.store import VnfsStore

STOP_SECONDS = 5.0  # for requests under way
BACKLOG = 1024
# How long (seconds) a thread that works on many requests' reports keeps the others waiting. Python's own 5 ms cost a
# tenth of the check-ins a second.
SWITCH_SECONDS = 0.0005


def serve(paths: SitePaths, ready_file: Path | None = None) -> None:
    """Serve the site until SIGTERM or SIGINT. Raises CapsulekitError when something it needs is missing or taken."""
    asyncio.run(_serve(paths, ready_file))


async def _serve(paths: SitePaths, ready_file: Path | None) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    stop, hup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hup.set)
    if ready_file:
        ready_file.unlink(missing_ok=True)
    async with AsyncExitStack() as stack:
        starting = asyncio.create_task(_start(paths, stack))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        with suppress(asyncio.CancelledError):
            record = Record(paths, *await starting)
            stack.callback(record.remove)
            _keep_running(stack, record.keep(), record.answer(hup, _notify))
            _say_ready(ready_file)
            await stopping
        log("stopping")
        stopping.cancel()
        _notify("STOPPING=1")
        if ready_file:
            ready_file.unlink(missing_ok=True)
    log("stopped")


async def _start(paths: SitePaths, stack: AsyncExitStack) -> tuple[NetworkManager, NfsManager]:
    """Bring up everything; what is up is taken down by ``stack``, also when a later part fails."""
    config = load_site(paths)
    registry = open_registry(paths)
    registry.actor = Actor("master", "serve")
    registry.db.log = log
    stack.callback(registry.close)
    desk = Desk(paths, config, registry, site_catalog(paths), VnfsStore(paths, registry))
    nfs = NfsManager(paths, config, registry, desk.store, log)
    site = Site(desk, SiteImage(paths, config))
    require_address(config.interface, config.ip)
    arches = require_stage1(paths)
    cert, key = pki.server_cert(paths, config.ip, ())
    ensure_cluster_key(paths)
    site.image.current()
    for name in ipxe.write_tftp(paths.state / "netboot" / "tftp", site.base):
        lacks = f"{ipxe.IPXE_PROGRAMS / name} is missing: firmware that is not iPXE can't boot"
        log("warning", message=lacks, hint="apt-get install ipxe")

    def settle(config: SiteConfig) -> None:
        site.desk.config = site.image.config = config
        nfs.settle(config)

    manager = NetworkManager(paths, config, registry, log, settle, wake=site.joined)
    leases = LeaseFile(manager.folder / "leases")
    site.askers = Askers(lambda: desk.config, lambda: manager.networks, leases, registry)
    small_tls_buffers()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    # A node asks with a program of its own each time, which cannot come back to a session: no work for that.
    context.num_tickets = 0
    await _listen(stack, site, "plain", config.http_port, None)
    await _listen(stack, site, "tls", config.tls_port, context)
    stack.push_async_callback(manager.stop)
    await manager.start()
    stack.push_async_callback(nfs.stop)
    _keep_running(stack, manager.run(), nfs.run())
    # Last in, first out: the waiting requests are sent home before the sockets close.
    stack.callback(site.stopping.set)
    ports = {"http": f"{config.host}:{config.http_port}", "tls": f"{config.host}:{config.tls_port}"}
    log("ready", **ports, stage1=",".join(arches), dnsmasq_pid=manager.dnsmasq.pid, resolver_pid=manager.resolver.pid)
    return manager, nfs


def _keep_running(stack: AsyncExitStack, *works: Coroutine[object, object, None]) -> None:
    """Run what goes on until the end; it is waited for then, so that nothing is left half done."""
    for work in works:
        stack.push_async_callback(_ended, asyncio.create_task(_named(work)))


async def _named(work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except Exception as bug:  # nobody waits for it: without this line it would be silent
        log("error", message=f"this is a bug: {type(bug).__name__}: {bug}", hint="restart capsulekit serve")


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _listen(stack: AsyncExitStack, site: Site, port: str, number: int, context: ssl.SSLContext | None) -> None:
    """One socket with its application. Raises CapsulekitError when the address can't be had."""
    address = site.desk.config.ip
    runner = web.AppRunner(make_app(site, port), access_log_class=AccessLog, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, address, number, ssl_context=context, backlog=BACKLOG).start()
    except OSError as error:
        raise CapsulekitError(
            f"can't listen on {site.desk.config.host}:{number}: {os.strerror(error.errno or 0).lower()}",
            hint="another server runs there? Stop it, or change http_port and tls_port in site.toml",
        ) from error


def _say_ready(ready_file: Path | None) -> None:
    if ready_file:
        atomic_write(ready_file, f"{os.getpid()}\n".encode())
    _notify("READY=1")


def _notify(message: str) -> None:
    """Tell systemd, when it asked to be told (sd_notify(3)); a name starting with @ is an abstract socket."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s, suppress(OSError):
        s.sendto(message.encode(), "\0" + name[1:] if name.startswith("@") else name)
