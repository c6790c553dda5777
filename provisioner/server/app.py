"""The provisioner's HTTP: which address leads where, on which of the two ports, and who may ask.

The plain port serves what anybody may have and hands out tickets; all else is TLS only. The protocol is written
down in docs/reference/openapi.yaml, which a test compares with ROUTES.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from capsulekit.errors import CapsulekitError
from provisioner.devices import MOST_BYTES, parse_devices
from provisioner.netboot import stage1
from provisioner.netboot.ipxe import boot_script, refusing_script
from provisioner.registry.names import parse_mac
from provisioner.registry.trees import pack_tree
from provisioner.server import blobs, tickets
from provisioner.server.askers import AskRefused
from provisioner.server.context import MAC, SITE, Site
from provisioner.server.desk import UnknownNode
from provisioner.server.log import log
from provisioner.trees import report as trees

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MOST_BODY = 64 * 1024  # bytes
BOOT_STATES = ("init", "handoff")
NO_STORE = {"Cache-Control": "no-store"}
TREE_SECONDS = 60.0
TREE_HEADER = "Capsulekit-Tree"  # of an answer to ready: "wanted" when the node's list of files is not here


async def boot_ipxe(request: web.Request) -> web.StreamResponse:
    """GET /v1/boot.ipxe?mac=: a node's boot script with a new ticket.

    At a site of IPv6 without one: iPXE asks from its DHCPv6 address, stage 1 then has another, made of its MAC.
    """
    site = request.app[SITE]
    mac = _asked_for(request, request.query.get("mac", ""))
    try:
        await _check_asker(request, mac)
    except AskRefused as refused:
        # iPXE shows the text of an answer that is a script, of no other.
        return web.Response(text=refusing_script(mac, _peer(request), refused.message), headers=NO_STORE)
    ticket = "" if site.desk.config.six else await _new_ticket(site, mac, _peer(request))
    arches = await asyncio.to_thread(stage1.installed, site.desk.paths)
    script = boot_script(site.base, mac, ticket, site.desk.config.stage1_kargs, arches)
    return web.Response(text=script, headers=NO_STORE)


async def ticket(request: web.Request) -> web.StreamResponse:
    """POST /v1/ticket: a new ticket for a node whose boot script held none, or that had no boot script."""
    mac = _asked_for(request, (await _form(request)).get("mac", ""))
    try:
        await _check_asker(request, mac)
    except AskRefused as refused:
        raise web.HTTPForbidden(text=f"{refused.message}\n") from refused
    return web.Response(text=f"ticket {await _new_ticket(request.app[SITE], mac, _peer(request))}\n", headers=NO_STORE)


def _asked_for(request: web.Request, text: str) -> str:
    """The MAC that boots; one address can't ask without end."""
    site = request.app[SITE]
    if not site.limiter.allow(_peer(request)):
        site.count("rate_limited")
        raise web.HTTPTooManyRequests(text="too many boots from one address: wait\n", headers={"Retry-After": "5"})
    return _mac(text)


async def _check_asker(request: web.Request, mac: str) -> None:
    """Raises AskRefused, counted and logged, when the MAC is not that of the machine that asks."""
    site, addr = request.app[SITE], _peer(request)
    port = request.transport.get_extra_info("peername")[1] if request.transport else 0
    if site.askers is None:
        return
    try:
        await asyncio.to_thread(site.askers.check, mac, addr, port)
    except AskRefused as refused:
        site.count("asks_refused", reason=refused.reason)
        log("ask-refused", mac=mac, addr=addr, reason=refused.reason, seen=refused.seen or None)
        raise


async def _new_ticket(site: Site, mac: str, addr: str) -> str:
    made = await site.writes.do(tickets.issue, site.desk.registry, mac, addr)
    site.count("tickets_issued")
    log("ticket", mac=mac, addr=addr)
    return made


async def session(request: web.Request) -> web.StreamResponse:
    """POST /v1/session: a ticket for a session key. An unknown MAC becomes a node here, as the policy says."""
    site, addr, form = request.app[SITE], _peer(request), await _form(request)
    mac = _mac(form.get("mac", ""))
    try:
        await site.writes.do(tickets.redeem, site.desk.registry, form.get("ticket", ""), mac, addr)
    except tickets.TicketRefused as refused:
        site.count("tickets_refused", reason=refused.reason)
        log("ticket-refused", mac=mac, addr=addr, reason=refused.reason)
        raise web.HTTPForbidden(text=f"{refused.message}\n") from refused
    node = await asyncio.to_thread(site.desk.join, mac)
    if node:
        site.count("nodes_joined")
        site.joined.set()
        log("node-added", mac=mac, addr=addr, name=node.name, accepted=node.accepted)
    key = await site.writes.do(tickets.open_session, site.desk.registry, mac, addr)
    site.count("sessions")
    log("session", mac=mac, addr=addr)
    return web.Response(text=f"session {key}\n", headers=NO_STORE)


async def state(request: web.Request) -> web.StreamResponse:
    """POST /v1/state/{state}: ``init`` is answered with the plan, or 202 after a while; ``ready`` and the site's own
    states with what the node shall run, or ``ok``; all are recorded.
    """
    site, addr, form = request.app[SITE], _peer(request), await _form(request)
    name, mac = request.match_info["state"], request[MAC]
    if name not in (*BOOT_STATES, *site.desk.config.all_states):
        raise web.HTTPNotFound(text=f"no state is called {name!r}\n")
    uptime, memory, error = _number(form, "uptime"), _whole(form, "mem_used_kb"), form.get("error", "")
    plan, kept = "ok\n", name
    if name == "init":
        if reason := await _held(site, mac, addr):
            return web.Response(status=202, text=f"wait {reason}\n", headers=NO_STORE)
        plan = await _plan(site, mac, addr)
    elif error:
        kept = "failed"
    if name not in BOOT_STATES:
        plan, wrong = await _state_plan(site, mac, name)
        kept, error = ("failed", wrong) if wrong and not error else (kept, error)
    tree = form.get("tree", "") if name == "ready" else ""
    if tree and not re.fullmatch(r"[0-9a-f]{64}", tree):
        raise web.HTTPBadRequest(text="tree must be a sha256 in hex\n")
    wanted = await site.writes.do(site.desk.report, mac, kept, addr, error, uptime, memory, tree)
    site.count("states", state=kept)
    log("state", mac=mac, addr=addr, state=kept, error=error or None)
    return web.Response(text=plan, headers={**NO_STORE, **({TREE_HEADER: "wanted"} if wanted else {})})


async def progress(request: web.Request) -> web.StreamResponse:
    """POST /v1/progress: a step of the boot began, ended or failed; a failed one is shown by ``node status``."""
    site, mac, form = request.app[SITE], request[MAC], await _form(request)
    step, status, detail = form.get("step", ""), form.get("status", ""), form.get("detail", "")
    seconds, memory = _number(form, "seconds"), _whole(form, "mem_used_kb")
    if status not in ("start", "ok", "failed") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", step):
        raise web.HTTPBadRequest(text="step must be a word, and status start, ok or failed\n")
    await site.writes.do(site.desk.progress, mac, step, status, seconds, detail, memory)
    if status == "failed":
        site.count("steps_failed")
    log("progress", mac=mac, step=step, status=status, seconds=seconds, detail=detail or None)
    return web.Response(text="ok\n")


async def devices(request: web.Request) -> web.StreamResponse:
    """POST /v1/devices: what the node is made of, in place of what it said before."""
    site, mac = request.app[SITE], request[MAC]
    body = await _plain_text(request, MOST_BYTES, "the list of devices")
    try:
        found = await asyncio.to_thread(parse_devices, body)
    except CapsulekitError as wrong:
        raise web.HTTPBadRequest(text=f"{wrong.message}\n") from wrong
    await site.writes.do(site.desk.devices, mac, found)
    site.count("device_lists")
    log("devices", mac=mac, kinds=len(found), without_driver=sum(d.is_network and not d.driver for d in found))
    return web.Response(text="ok\n")


async def tree(request: web.Request) -> web.StreamResponse:
    """POST /v1/tree: what differs on the node from its capsule, in place of what it said before."""
    site, mac = request.app[SITE], request[MAC]
    if mac in site.sending:  # or one node could keep all others waiting
        raise web.HTTPTooManyRequests(text="the list of files is being sent already\n")
    site.sending.add(mac)
    try:
        found = await _kept_tree(request, site, mac)
    finally:
        site.sending.discard(mac)
    site.count("trees")
    log("tree", mac=mac, node=len(found.node), upper=len(found.upper), cut=found.cut)
    return web.Response(text="ok\n")


async def _kept_tree(request: web.Request, site: Site, mac: str) -> trees.NodeTree:
    async with site.trees:  # each may be megabytes
        try:
            async with asyncio.timeout(TREE_SECONDS):  # others wait for their turn
                body = await _plain_text(request, trees.MOST_BYTES, "the list of files")
        except TimeoutError as slow:
            raise web.HTTPRequestTimeout(text="the list of files took too long\n") from slow
        try:
            found = await asyncio.to_thread(trees.parse_report, body)
        except CapsulekitError as wrong:
            log("tree-refused", mac=mac, message=wrong.message)
            raise web.HTTPBadRequest(text=f"{wrong.message}\n") from wrong
        await site.writes.do(site.desk.tree, mac, await asyncio.to_thread(pack_tree, body))
    return found


async def _plain_text(request: web.Request, most: int, what: str) -> bytes:
    """The body, of ``most`` bytes at most."""
    if request.content_type != "text/plain":
        raise web.HTTPUnsupportedMediaType(text="the body must be text/plain\n")
    body = bytearray()
    async for piece in request.content.iter_chunked(MOST_BODY):
        body += piece
        if len(body) > most:
            raise web.HTTPRequestEntityTooLarge(most, len(body), text=f"{what} is longer than {most} bytes\n")
    return bytes(body)


async def healthz(request: web.Request) -> web.StreamResponse:
    """GET /healthz: 200 while the registry answers."""
    await asyncio.to_thread(request.app[SITE].desk.registry.capsules)
    return web.Response(text="ok\n")


async def metrics(request: web.Request) -> web.StreamResponse:
    """GET /metrics: counters since the start, in Prometheus's text format."""
    counters = sorted(request.app[SITE].counters.items())
    text = "".join(f"{name} {number}\n" for name, number in counters)
    return web.Response(text=text)


@dataclass(frozen=True)
class Route:
    """One address. ``ports`` holds "plain", "tls" or both; ``session``: only with a session key."""

    method: str
    path: str
    handler: Handler
    ports: frozenset[str]
    session: bool = False


PLAIN, TLS = frozenset({"plain"}), frozenset({"tls"})
ROUTES = (
    Route("GET", "/v1/boot.ipxe", boot_ipxe, PLAIN),
    # UEFI firmware asks for a file's size before it fetches it.
    Route("HEAD", "/boot/{name}", blobs.boot_file, PLAIN),
    Route("GET", "/boot/{name}", blobs.boot_file, PLAIN),
    Route("GET", "/boot/{arch}/{name}", blobs.stage1_file, PLAIN),
    Route("POST", "/v1/ticket", ticket, TLS),
    Route("POST", "/v1/session", session, TLS),
    Route("POST", "/v1/state/{state}", state, TLS, session=True),
    Route("POST", "/v1/progress", progress, TLS, session=True),
    Route("POST", "/v1/devices", devices, TLS, session=True),
    Route("POST", "/v1/tree", tree, TLS, session=True),
    Route("GET", "/v1/scripts/{sha256}", blobs.script, TLS, session=True),
    Route("GET", "/v1/blobs/{sha256}", blobs.private_blob, TLS, session=True),
    Route("GET", "/blobs/{sha256}", blobs.public_blob, PLAIN | TLS),
    Route("GET", "/capsules/{identity}/SHA256SUMS", blobs.sums, PLAIN | TLS),
    Route("GET", "/capsules/{identity}/SHA256SUMS.minisig", blobs.sums, PLAIN | TLS),
    Route("GET", "/healthz", healthz, PLAIN | TLS),
    Route("GET", "/metrics", metrics, PLAIN | TLS),
)


def make_app(site: Site, port: str) -> web.Application:
    """The application of one port, "plain" or "tls"."""
    app = web.Application(middlewares=[_errors], client_max_size=MOST_BODY)
    app[SITE] = site
    for route in ROUTES:
        if port in route.ports:
            handler = _with_session(route.handler) if route.session else route.handler
            app.router.add_route(route.method, route.path, handler)
    return app


def _with_session(handler: Handler) -> Handler:
    """Let in only requests with a living session key, and say whose it is in ``request[MAC]``."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        site, header = request.app[SITE], request.headers.get("Authorization", "")
        mac = await site.sessions.ask(header)
        if mac is None:
            site.count("sessions_refused")
            raise web.HTTPUnauthorized(text="no such session: boot again\n", headers={"WWW-Authenticate": "Bearer"})
        request[MAC] = mac
        return await handler(request)

    return guarded


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure is one line of text; only the log says more."""
    try:
        return await handler(request)
    except UnknownNode as gone:
        raise web.HTTPUnauthorized(text=f"{gone.message}\n", headers={"WWW-Authenticate": "Bearer"}) from gone
    except CapsulekitError as error:
        request.app[SITE].count("errors")
        log("error", path=request.path, addr=_peer(request), message=error.message, hint=error.hint)
        return web.Response(status=503, text=f"{error.message}\n", headers={"Retry-After": "10"})
    except (web.HTTPException, asyncio.CancelledError, ConnectionError):
        raise
    except Exception as bug:
        request.app[SITE].count("errors")
        log("error", path=request.path, addr=_peer(request), message=f"{type(bug).__name__}: {bug}")
        return web.Response(status=500, text="the master failed, its log says why\n")


async def _held(site: Site, mac: str, addr: str) -> str:
    """Keep the request while the node must wait, at most ``site.hold`` seconds; the reason that is left, or ""."""
    end, told = time.monotonic() + site.hold, ""
    while reason := await asyncio.to_thread(site.desk.must_wait, mac):
        if reason != told:
            await site.writes.do(site.desk.report, mac, "waiting", addr, reason)
            log("waiting", mac=mac, addr=addr, reason=reason)
            told = reason
        left = end - time.monotonic()
        if left <= 0 or site.stopping.is_set():
            return reason
        with suppress(TimeoutError):
            await asyncio.wait_for(site.stopping.wait(), min(site.poll, left))
    return ""


async def _plan(site: Site, mac: str, addr: str) -> str:
    """The plan; what keeps it from being made is shown by ``node status`` too."""
    try:
        return await asyncio.to_thread(site.desk.hand_out, mac)
    except UnknownNode:
        raise
    except CapsulekitError as error:
        await site.writes.do(site.desk.report, mac, "failed", addr, error.message)
        raise


async def _state_plan(site: Site, mac: str, name: str) -> tuple[str, str]:
    """(what a running node shall do, what keeps us from saying it): the node goes on as it is meanwhile."""
    try:
        return await site.state_plans.ask((mac, name)), ""
    except UnknownNode:
        raise
    except CapsulekitError as error:
        log("error", mac=mac, state=name, message=error.message)
        return "keep\n", error.message


def _peer(request: web.Request) -> str:
    """The address of the other end of the connection; no header is believed."""
    return request.remote or ""


def _mac(text: str) -> str:
    try:
        return parse_mac(text)
    except CapsulekitError as wrong:
        raise web.HTTPBadRequest(text=f"{wrong.message}\n") from wrong


async def _form(request: web.Request) -> dict[str, str]:
    """The request's form. Only the plain kind: a multipart one could hold files."""
    if request.body_exists and request.content_type != "application/x-www-form-urlencoded":
        raise web.HTTPUnsupportedMediaType(text="the body must be application/x-www-form-urlencoded\n")
    try:
        return {key: value for key, value in (await request.post()).items() if isinstance(value, str)}
    except (ValueError, LookupError) as wrong:  # LookupError: the body names a character set that nobody knows
        raise web.HTTPBadRequest(text="the form is not UTF-8\n") from wrong


def _number(form: dict[str, str], key: str) -> float | None:
    text = form.get(key, "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        raise web.HTTPBadRequest(text=f"{key} must be a number\n")
    return float(text)


def _whole(form: dict[str, str], key: str) -> int | None:
    number = _number(form, key)
    return None if number is None else int(number)


class AccessLog(AbstractAccessLogger):
    """One line a request: no query, no headers, no body, hence no secrets."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Called by aiohttp when the answer has been sent; ``time`` is in seconds."""
        log(
            "request",
            addr=request.remote,
            method=request.method,
            path=request.path,
            status=response.status,
            bytes=response.body_length,
            seconds=round(time, 3),
        )
