"""``capsulekit serve``: two listening sockets and dnsmasq, started in order, stopped in order, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.sitepaths import SitePaths
from provisioner import pki
from provisioner.catalog import Catalog
from provisioner.hostkeys import ensure_cluster_key
from provisioner.netboot import dnsmasq, ipxe
from provisioner.netboot.interfaces import require_address
from provisioner.netboot.siteimg import SiteImage
from provisioner.netboot.stage1 import require_stage1
from provisioner.registry.registry import open_registry
from provisioner.server.app import AccessLog, make_app
from provisioner.server.context import Site
from provisioner.server.desk import Desk
from provisioner.server.log import log
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

STOP_SECONDS = 5.0  # for requests under way
NAMES_SECONDS = 5.0  # how long a name changed by another command may be unknown to DHCP
BACKLOG = 1024


def serve(paths: SitePaths, ready_file: Path | None = None) -> None:
    """Serve the site until SIGTERM or SIGINT. Raises CapsulekitError when something it needs is missing or taken."""
    asyncio.run(_serve(paths, ready_file))


async def _serve(paths: SitePaths, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if ready_file:
        ready_file.unlink(missing_ok=True)
    async with AsyncExitStack() as stack:
        starting = asyncio.create_task(_start(paths, stack))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
            _say_ready(ready_file)
            await stopping
        log("stopping")
        stopping.cancel()
        _notify("STOPPING=1")
        if ready_file:
            ready_file.unlink(missing_ok=True)
    log("stopped")


async def _start(paths: SitePaths, stack: AsyncExitStack) -> None:
    """Bring up everything; what is up is taken down by ``stack``, also when a later part fails."""
    config = load_site(paths)
    registry = open_registry(paths)
    stack.callback(registry.close)
    site = Site(Desk(paths, config, registry, Catalog(), VnfsStore(paths, registry)), SiteImage(paths, config))
    require_address(config.interface, config.ip)
    arches = require_stage1(paths)
    cert, key = pki.server_cert(paths, config.ip, ())
    ensure_cluster_key(paths)
    site.image.current()
    folder = paths.state / "netboot"
    for name in ipxe.write_tftp(folder / "tftp", site.base):
        lacks = f"{ipxe.IPXE_PROGRAMS / name} is missing: firmware that is not iPXE can't boot"
        log("warning", message=lacks, hint="apt-get install ipxe")
    conf = dnsmasq.write_config(folder, config, paths.config / "dnsmasq.d")
    _write_names(site, folder)
    dnsmasq.check_config(conf)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    await _listen(stack, site, "plain", config.http_port, None)
    await _listen(stack, site, "tls", config.tls_port, context)
    process = dnsmasq.Dnsmasq(conf, config.ip, log)
    stack.push_async_callback(process.stop)
    await process.start()
    names = asyncio.create_task(_keep_names(site, folder, process))
    stack.callback(names.cancel)
    # Last in, first out: the waiting requests are sent home before the sockets close.
    stack.callback(site.stopping.set)
    ports = {"http": f"{config.host}:{config.http_port}", "tls": f"{config.host}:{config.tls_port}"}
    log("ready", **ports, stage1=",".join(arches), dnsmasq_pid=process.pid)


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


async def _keep_names(site: Site, folder: Path, process: dnsmasq.Dnsmasq) -> None:
    """Carry names from the registry to DHCP: at once when a node joins, soon when a command changed one."""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(site.joined.wait(), NAMES_SECONDS)
        site.joined.clear()
        try:
            if await asyncio.to_thread(_write_names, site, folder):
                process.reload()
        except (CapsulekitError, OSError) as error:
            log("error", message=f"names did not reach DHCP: {error}")


def _write_names(site: Site, folder: Path) -> bool:
    return dnsmasq.write_hosts(folder, [(node.nodeid, node.hostname) for node in site.desk.registry.nodes()])


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
