"""Bytes by their digest, and the boot files: sent by the kernel (sendfile), with ranges, never through our memory."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

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
    """GET /boot/{name}: the files iPXE and HTTP-boot firmware load. site.img is made anew when the site changed."""
    site = request.app[SITE]
    path = {
        "vmlinuz": site.stage1 / "vmlinuz",
        "stage1.img": site.stage1 / "stage1.img",
        "ipxe.efi": site.desk.paths.state / "netboot" / "tftp" / "ipxe.efi",
    }.get(request.match_info["name"])
    if request.match_info["name"] == "site.img":
        path = await asyncio.to_thread(site.image.current)
    if path is None or not path.exists():
        raise web.HTTPNotFound(text="no such boot file\n")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-cache"})


def _digest(request: web.Request, key: str) -> str:
    digest = request.match_info[key]
    if not SHA256.fullmatch(digest):
        raise web.HTTPBadRequest(text="that is not a sha256: 64 lower-case hex digits\n")
    return digest
