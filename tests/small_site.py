"""A real site in a temporary folder with the small capsule installed, and its real application on loopback."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from aiohttp import web
from small_capsule import AUTHOR, CONTENT, layer, small_capsule

from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner import pki
from provisioner.catalog import site_catalog
from provisioner.initsite import InitRequest, init_site
from provisioner.netboot.siteimg import SiteImage
from provisioner.registry.registry import Registry, open_registry
from provisioner.server.app import AccessLog, make_app
from provisioner.server.context import Site
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

CAPSULE = "tiny-1.0.amd64"
MAC = "52:54:00:12:34:56"
OTHER_MAC = "52:54:00:12:34:57"
PRIVATE = "layers/secret.squashfs"
SECRET_CONTENT = {**CONTENT, PRIVATE: b"password hashes" * 50}


def stage1_folder(folder: Path, arch: str = "amd64", text: str = "stage 1") -> Path:
    """What `stage1 build` would have written, but for its content."""
    folder.mkdir(parents=True)
    (folder / "vmlinuz").write_bytes(f"kernel of {text}".encode())
    (folder / "stage1.img").write_bytes(f"image of {text}".encode() * 100)
    record = {"format": 1, "arch": arch, "release": "6.1.0", "profile": "test", "modules": [], "firmware_missing": []}
    (folder / "stage1.json").write_text(json.dumps(record))
    return folder


def make_site(folder: Path, *, policy: str = "auto", interface: str = "lo", address: str = "127.0.0.1/8") -> SitePaths:
    """An initialised site whose new nodes boot the small capsule, which has one private layer."""
    paths = SitePaths(folder / "config", folder / "state")
    stage1 = stage1_folder(folder / "stage1")
    dot = ":" if ":" in address else "."
    first = address.partition("/")[0].rpartition(dot)[0] + dot
    pool = f"{first}100-{first}110"
    init_site(paths, InitRequest(interface, address, pool, "site.test", policy, (stage1,), default_vnfs=CAPSULE))
    author = folder / "author.pub"
    author.write_text(AUTHOR.public.file_text)
    Keyring(paths.trust).add(author)
    layers = tuple(layer(path, SECRET_CONTENT) for path in ("layers/modules.squashfs", "layers/rootfs.squashfs"))
    layers = (layers[0], replace(layers[1], acl="layers/rootfs.acl"), layer(PRIVATE, SECRET_CONTENT, private=True))
    small_capsule(folder / "tiny.vnfs", SECRET_CONTENT, layers=layers)
    registry = open_registry(paths)
    VnfsStore(paths, registry).import_file(folder / "tiny.vnfs")
    registry.activate("hostname", ["init/all"])
    registry.activate("sshkeys", ["init/all"])
    registry.close()
    return paths


@dataclass
class Running:
    """The application on two loopback ports, and a client; ``source`` is the address the client comes from."""

    site: Site
    registry: Registry
    http: str
    https: str
    tls: ssl.SSLContext
    clients: dict[str, aiohttp.ClientSession] = field(default_factory=dict)

    def client(self, source: str = "127.0.0.1") -> aiohttp.ClientSession:
        if source not in self.clients:
            self.clients[source] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(local_addr=(source, 0), ssl=self.tls, force_close=True)
            )
        return self.clients[source]

    async def get(self, url: str, *, key: str = "", source: str = "127.0.0.1", **headers: str) -> tuple[int, bytes]:
        if key:
            headers["Authorization"] = f"Bearer {key}"
        async with self.client(source).get(url, headers=headers) as answer:
            return answer.status, await answer.read()

    async def post(self, path: str, *, key: str = "", source: str = "127.0.0.1", **form: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.client(source).post(self.https + path, data=form, headers=headers) as answer:
            return answer.status, await answer.text()

    async def ticket(self, mac: str = MAC, source: str = "127.0.0.1") -> str:
        status, script = await self.get(f"{self.http}/v1/boot.ipxe?mac={mac}", source=source)
        assert status == 200
        return next(w for w in script.decode().split() if w.startswith("ck.ticket=")).partition("=")[2]

    async def session(self, mac: str = MAC) -> str:
        status, text = await self.post("/v1/session", ticket=await self.ticket(mac), mac=mac)
        assert status == 200
        return text.split()[1]


@asynccontextmanager
async def running(paths: SitePaths) -> AsyncIterator[Running]:
    """Serve a site made by make_site on free ports of 127.0.0.1, without dnsmasq, until the block ends."""
    config = replace(load_site(paths), http_port=free_port(), tls_port=free_port())
    registry = open_registry(paths)
    site = Site(
        Desk(paths, config, registry, site_catalog(paths), VnfsStore(paths, registry)),
        SiteImage(paths, config),
        hold=0.3,
        poll=0.05,
    )
    cert, key = pki.server_cert(paths, config.ip, ())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    runners = []
    for port, number, tls in (("plain", config.http_port, None), ("tls", config.tls_port, context)):
        runner = web.AppRunner(make_app(site, port), access_log_class=AccessLog)
        await runner.setup()
        await web.TCPSite(runner, config.ip, number, ssl_context=tls).start()
        runners.append(runner)
    client_tls = ssl.create_default_context(cafile=str(pki.ca_path(paths)))
    run = Running(site, registry, site.base, f"https://{config.ip}:{config.tls_port}", client_tls)
    try:
        yield run
    finally:
        for client in run.clients.values():
            await client.close()
        for runner in runners:
            await runner.cleanup()
        registry.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
