"""Bytes by their digest, and the boot files: sent by the kernel (sendfile), with ranges, never through our memory."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from aiohttp import web

from provisioner.netboot import stage1
from provisioner.server.context import MAC, SITE

SHA256 = re.compile(r"[0-9a-f]{64}")
# Nothing under a digest ever changes: any cache may keep it for as long as it likes.
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable", "Content-Type": "application/octet-stream"}
SECRET = {"Cache-Control": "no-store", "Content-Type": "application/octet-stream"}


async def public_blob(request: web.Request) -> web.StreamResponse:
    """GET /blobs/{sha256}: a public member of some capsule, to anybody."""
    site = request.app[SITE]
    path = await asyncio.to_thread(site.desk.public_blob, _digest(request, "sha256"))
    if path is None:
        raise web.HTTPNotFound(text="no such public blob\n")
    return web.FileResponse(path, headers=FOREVER)


async def private_blob(request: web.Request) -> web.StreamResponse:
    """GET /v1/blobs/{sha256}: a member of the node's own capsule, also a private one."""
    site = request.app[SITE]
    path = await asyncio.to_thread(site.desk.private_blob, request[MAC], _digest(request, "sha256"))
    if path is None or not path.exists():
        raise web.HTTPNotFound(text="no such blob in your plan\n")
    return web.FileResponse(path, headers=SECRET)


async def script(request: web.Request) -> web.StreamResponse:
    """GET /v1/scripts/{sha256}: a module's script or data file that the node's plan names."""
    site = request.app[SITE]
    content = await asyncio.to_thread(site.desk.script, request[MAC], _digest(request, "sha256"))
    if content is None:
        raise web.HTTPNotFound(text="no such script in your plan\n")
    return web.Response(body=content, headers=SECRET)


async def sums(request: web.Request) -> web.StreamResponse:
    """GET /capsules/{identity}/SHA256SUMS and .minisig."""
    site = request.app[SITE]
    name = request.path.rpartition("/")[2]
    path = await asyncio.to_thread(site.desk.sums, _digest(request, "identity"), name)
    if path is None or not path.exists():
        raise web.HTTPNotFound(text="no such capsule\n")
    return web.FileResponse(path, headers={"Content-Type": "text/plain; charset=utf-8"})


async def boot_file(request: web.Request) -> web.StreamResponse:
    """GET /boot/{name}: site.img, made anew when the site changed, and the iPXE that HTTP-boot firmware loads."""
    site, name = request.app[SITE], request.match_info["name"]
    if name == "site.img":
        return _boot_file(await asyncio.to_thread(site.image.current))
    if name == "ipxe.efi":
        return _boot_file(site.desk.paths.state / "netboot" / "tftp" / name)
    raise web.HTTPNotFound(text="no such boot file\n")


async def stage1_file(request: web.Request) -> web.StreamResponse:
    """GET /boot/{arch}/{name}: the kernel and image of stage 1 for one architecture."""
    arch, name = request.match_info["arch"], request.match_info["name"]
    if arch not in stage1.ARCHES or name not in (stage1.KERNEL, stage1.IMAGE):
        raise web.HTTPNotFound(text="no such boot file\n")
    return _boot_file(stage1.folder_of(request.app[SITE].desk.paths, arch) / name)


def _boot_file(path: Path) -> web.StreamResponse:
    if not path.is_file():
        raise web.HTTPNotFound(text="no such boot file\n")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-cache"})


def _digest(request: web.Request, key: str) -> str:
    digest = request.match_info[key]
    if not SHA256.fullmatch(digest):
        raise web.HTTPBadRequest(text="that is not a sha256: 64 lower-case hex digits\n")
    return digest
