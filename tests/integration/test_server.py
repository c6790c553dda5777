"""The provisioner's protocol, spoken to the real application over real HTTP and TLS."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from small_capsule import AUTHOR, CONTENT
from small_site import CAPSULE, MAC, OTHER_MAC, PRIVATE, SECRET_CONTENT, Running, make_site, running, stage1_folder

from capsulekit.files import sha256_bytes
from provisioner import pki
from provisioner.netboot.stage1 import install, read_source
from provisioner.sitekey import ensure_site_key


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(make_site(tmp_path)) as run:
        yield run


def files_of(plan: str) -> dict[str, list[str]]:
    return {line.split()[1]: line.split()[2:] for line in plan.splitlines() if line.startswith("file ")}


# --- the way in -------------------------------------------------------------------------------------------------


async def test_the_boot_script_loads_kernel_and_images_and_carries_the_mac_and_a_ticket(site: Running) -> None:
    status, text = await site.get(f"{site.http}/v1/boot.ipxe?mac=52:54:00:12:34:56")
    script = text.decode()
    assert status == 200
    assert script.startswith("#!ipxe\n")
    kernel = f"{site.http}/boot/${{cpu}}/vmlinuz"
    assert f"\nkernel {kernel} initrd=stage1.img initrd=site.img ck.mac={MAC} " in script
    assert re.search(r" ck\.ticket=[0-9a-f]{32} console=tty0 rootfstype=ramfs$", script, re.M)
    assert "\nboot\n" in script


async def test_a_processor_that_the_site_has_no_stage_1_for_is_told_so(site: Running, tmp_path: Path) -> None:
    async def script() -> str:
        return (await site.get(f"{site.http}/v1/boot.ipxe?mac={MAC}"))[1].decode()

    assert "\niseq ${cpu} i386 && goto lacking ||\n" in await script()
    assert (await site.get(f"{site.http}/boot/i386/vmlinuz"))[0] == 404
    # The server need not be started again for it.
    install(read_source(stage1_folder(tmp_path / "i386", "i386", "the old kind")), site.site.desk.paths)
    assert "lacking" not in await script()
    assert await site.get(f"{site.http}/boot/i386/vmlinuz") == (200, b"kernel of the old kind")
    assert await site.get(f"{site.http}/boot/amd64/vmlinuz") == (200, b"kernel of stage 1")


async def test_a_node_gets_its_plan_with_everything_it_names(site: Running) -> None:
    key = await site.session()
    status, plan = await site.post("/v1/state/init", key=key)
    assert status == 200
    assert plan.startswith("plan 1\n")
    assert plan.endswith("end\n")
    assert f"nodeid {MAC}\nhostname n0000\ncluster new\ngroup cluster\nvnfs {CAPSULE}\n" in plan
    assert f"key {AUTHOR.public.text}\n" in plan
    for path, (digest, size, privacy) in files_of(plan).items():
        url = f"{site.https}/v1/blobs/{digest}" if privacy == "private" else f"{site.http}/blobs/{digest}"
        status, data = await site.get(url, key=key)
        assert (status, len(data), sha256_bytes(data)) == (200, int(size), digest), path
    for line in plan.splitlines():
        if line.startswith(("script ", "data ")):
            digest, size = next((w, int(line.split()[i + 1])) for i, w in enumerate(line.split()) if len(w) == 64)
            status, data = await site.get(f"{site.https}/v1/scripts/{digest}", key=key)
            assert (status, len(data), sha256_bytes(data)) == (200, size, digest), line
    identity = next(line.split()[1] for line in plan.splitlines() if line.startswith("identity "))
    _, sums = await site.get(f"{site.http}/capsules/{identity}/SHA256SUMS")
    status, signature = await site.get(f"{site.http}/capsules/{identity}/SHA256SUMS.minisig")
    assert sha256_bytes(sums) == identity
    assert status == 200
    assert b"trusted comment: " in signature


async def test_curl_with_the_site_ca_speaks_the_protocol(site: Running) -> None:
    ca = pki.ca_path(site.site.desk.paths)
    form = ["--data", f"ticket={await site.ticket()}", "--data", f"mac={MAC}"]
    command = ["curl", "-sS", "--fail", "--cacert", str(ca), *form, site.https + "/v1/session"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"session [0-9a-f]{64}\n", done.stdout)


async def test_a_client_that_pins_another_ca_does_not_connect(site: Running, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other")
    tls = ssl.create_default_context(cafile=str(pki.ca_path(other)))
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.get(f"{site.https}/healthz", ssl=tls)


# --- policy and waiting -----------------------------------------------------------------------------------------


async def test_policy_auto_adds_an_unknown_mac_with_the_defaults(site: Running) -> None:
    await site.session()
    node = site.registry.node(MAC)
    assert node is not None
    assert (node.name, node.vnfs, node.accepted) == ("n0000.new", CAPSULE, True)


async def test_a_second_boot_needs_no_new_registration(site: Running) -> None:
    await site.session()
    first = site.registry.node(MAC)
    await site.session()
    assert site.registry.node(MAC) == first
    assert len(site.registry.nodes()) == 1


async def test_policy_accept_lets_an_unknown_mac_wait_until_it_is_accepted(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, policy="accept")) as site:
        key = await site.session()
        assert await site.post("/v1/state/init", key=key) == (202, "wait not-accepted\n")
        node = site.registry.node(MAC)
        assert node is not None
        assert (node.accepted, node.status, node.error) == (False, "waiting", "not-accepted")
        secret = sha256_bytes(SECRET_CONTENT[PRIVATE])
        assert (await site.get(f"{site.https}/v1/blobs/{secret}", key=key))[0] == 404
        site.registry.accept_nodes([MAC])
        assert (await site.post("/v1/state/init", key=key))[0] == 200


async def test_a_disabled_node_waits_and_goes_on_once_enabled(site: Running) -> None:
    key = await site.session()
    site.registry.set_nodes("enabled", "0", [MAC])
    start = time.monotonic()
    assert await site.post("/v1/state/init", key=key) == (202, "wait disabled\n")
    assert time.monotonic() - start >= 0.3, "the request is held, so that nodes don't ask in a hot loop"
    site.site.hold = 20.0
    waiting = asyncio.create_task(site.post("/v1/state/init", key=key))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    site.registry.set_nodes("enabled", "1", [MAC])
    status, plan = await asyncio.wait_for(waiting, 5)
    assert status == 200
    assert plan.endswith("end\n")
    node = site.registry.node(MAC)
    assert node is not None
    assert (node.status, node.error) == ("init", "")


async def test_a_stopping_server_sends_waiting_nodes_away_at_once(site: Running) -> None:
    key = await site.session()
    site.registry.set_nodes("enabled", "0", [MAC])
    site.site.hold = 20.0
    waiting = asyncio.create_task(site.post("/v1/state/init", key=key))
    await asyncio.sleep(0.2)
    site.site.stopping.set()
    assert await asyncio.wait_for(waiting, 3) == (202, "wait disabled\n")


async def test_a_node_without_a_capsule_waits(site: Running) -> None:
    key = await site.session()
    site.registry.set_nodes("vnfs", "", [MAC])
    assert await site.post("/v1/state/init", key=key) == (202, "wait no-capsule\n")


async def test_a_damaged_store_is_named_to_the_node_and_in_its_status(site: Running) -> None:
    key = await site.session()
    (site.site.desk.store.folder(CAPSULE) / "SHA256SUMS").unlink()
    status, text = await site.post("/v1/state/init", key=key)
    assert status == 503
    assert CAPSULE in text
    node = site.registry.node(MAC)
    assert node is not None
    assert (node.status, node.error) == ("failed", text.strip())


# --- reports ----------------------------------------------------------------------------------------------------


async def test_states_and_steps_reach_the_registry(site: Running) -> None:
    key = await site.session()
    await site.post("/v1/state/init", key=key)
    assert await site.post("/v1/progress", key=key, step="fetch", status="ok", seconds="1.25", mem_used_kb="1024") == (
        200,
        "ok\n",
    )
    assert await site.post("/v1/state/handoff", key=key, uptime="20.5") == (200, "ok\n")
    assert await site.post("/v1/state/ready", key=key) == (200, "ok\n")
    assert list(site.registry.boot_times(MAC)) == ["init", "handoff", "ready"]
    step = next(e for e in site.registry.events(MAC) if e.kind == "step")
    assert (step.step, step.status, step.seconds, step.mem_used_kb) == ("fetch", "ok", 1.25, 1024)
    node = site.registry.node(MAC)
    assert node is not None
    assert (node.status, node.ipaddr) == ("ready", "127.0.0.1")


async def test_a_failed_step_is_the_nodes_status_with_its_reason(site: Running) -> None:
    key = await site.session()
    await site.post("/v1/state/init", key=key)
    reason = "layers/rootfs.squashfs: digest does not match"
    assert (await site.post("/v1/progress", key=key, step="fetch", status="failed", detail=reason))[0] == 200
    node = site.registry.node(MAC)
    assert node is not None
    assert (node.status, node.error) == ("failed", reason)


async def test_a_nodes_words_can_forge_no_log_line(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    key = await site.session()
    capsys.readouterr()
    detail = "x\n2026-01-01T00:00:00.000Z node-added mac=evil \x1b[2J"
    await site.post("/v1/progress", key=key, step="fetch", status="failed", detail=detail)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[1] for line in lines) == ["progress", "request"]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    "form", [{"status": "ok"}, {"step": "x", "status": "maybe"}, {"step": "x", "status": "ok", "seconds": "soon"}]
)
async def test_a_malformed_report_is_a_bad_request(site: Running, form: dict[str, str]) -> None:
    assert (await site.post("/v1/progress", key=await site.session(), **form))[0] == 400


async def test_a_state_nobody_knows_is_not_found(site: Running) -> None:
    assert (await site.post("/v1/state/nirvana", key=await site.session()))[0] == 404


async def test_no_secret_is_ever_logged(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    ticket = await site.ticket()
    _, text = await site.post("/v1/session", ticket=ticket, mac=MAC)
    key = text.split()[1]
    await site.post("/v1/state/init", key=key)
    await site.post("/v1/session", ticket=ticket, mac=MAC)
    logged = capsys.readouterr().err
    assert "session" in logged
    assert ticket not in logged
    assert key not in logged


# --- bytes ------------------------------------------------------------------------------------------------------


async def test_a_blob_can_be_resumed_after_a_cut(site: Running) -> None:
    content = CONTENT["layers/rootfs.squashfs"]
    url = f"{site.http}/blobs/{sha256_bytes(content)}"
    assert await site.get(url, Range="bytes=1000-1999") == (206, content[1000:2000])
    assert await site.get(url, Range=f"bytes={len(content) - 5}-") == (206, content[-5:])
    assert (await site.get(url, Range="bytes=99999999-"))[0] == 416


async def test_a_private_blob_needs_the_session_of_a_node_that_boots_it(site: Running) -> None:
    digest = sha256_bytes(SECRET_CONTENT[PRIVATE])
    for base in (site.http, site.https):
        assert (await site.get(f"{base}/blobs/{digest}"))[0] == 404
    assert (await site.get(f"{site.https}/v1/blobs/{digest}"))[0] == 401
    key = await site.session()
    assert await site.get(f"{site.https}/v1/blobs/{digest}", key=key) == (200, SECRET_CONTENT[PRIVATE])
    site.registry.set_nodes("vnfs", "", [MAC])
    assert (await site.get(f"{site.https}/v1/blobs/{digest}", key=key))[0] == 404


async def test_a_node_does_not_get_another_nodes_host_keys(site: Running) -> None:
    mine, other = await site.session(), await site.session(OTHER_MAC)
    _, plan = await site.post("/v1/state/init", key=other)
    digest = next(
        line.split()[3] for line in plan.splitlines() if line.startswith("data sshkeys ssh_host_ed25519_key ")
    )
    assert (await site.get(f"{site.https}/v1/scripts/{digest}", key=other))[0] == 200
    assert (await site.get(f"{site.https}/v1/scripts/{digest}", key=mine))[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/blobs/..%2f..%2fregistry.db",
        "/blobs/xyz",
        "/boot/..%2fregistry.db",
        "/boot/vmlinuz",
        "/boot/arm64/vmlinuz",
        "/boot/amd64/stage1.json",
        "/boot/amd64/..%2f..%2fregistry.db",
        "/boot/..%2fnetboot/site.img",
        "/capsules/x/SHA256SUMS",
    ],
)
async def test_an_address_can_not_lead_out_of_the_store(site: Running, path: str) -> None:
    assert (await site.get(site.http + path))[0] in (400, 404)


async def test_boot_files_are_served_and_site_img_follows_the_trusted_keys(site: Running) -> None:
    assert await site.get(f"{site.http}/boot/amd64/vmlinuz") == (200, b"kernel of stage 1")
    assert await site.get(f"{site.http}/boot/amd64/stage1.img", Range="bytes=0-4") == (206, b"image")
    _, first = await site.get(f"{site.http}/boot/site.img")
    own = ensure_site_key(site.site.desk.paths)
    names = (
        subprocess.run(["cpio", "-t", "--quiet"], input=first, capture_output=True, check=True).stdout.decode().split()
    )
    assert names == [
        "site",
        "site/ca.pem",
        "site/console",
        "site/keys",
        *sorted(f"site/keys/{key}.pub" for key in (AUTHOR.public.id, own.public.id)),
        "site/masters",
        "site/order",
        "site/stamp",
    ]
    assert (await site.get(f"{site.http}/boot/site.img"))[1] == first
    (site.site.desk.paths.trust / f"{AUTHOR.public.id}.pub").unlink()
    _, second = await site.get(f"{site.http}/boot/site.img")
    assert second.count(b"minisign public key") == 1, "the site's own key stays"


async def test_uefi_firmware_may_ask_for_a_boot_files_size(site: Running) -> None:
    tftp = site.site.desk.paths.state / "netboot" / "tftp"
    tftp.mkdir(parents=True)
    (tftp / "ipxe.efi").write_bytes(b"efi" * 100)
    async with site.client().head(f"{site.http}/boot/ipxe.efi") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "300")
    assert await site.get(f"{site.http}/boot/ipxe.efi") == (200, b"efi" * 100)
    async with site.client().head(f"{site.http}/boot/other.efi") as answer:
        assert answer.status == 404


async def test_a_big_body_is_refused(site: Running) -> None:
    assert (await site.post("/v1/session", ticket="0" * 100_000, mac=MAC))[0] == 413


async def test_health_and_metrics_answer(site: Running) -> None:
    assert await site.get(f"{site.http}/healthz") == (200, b"ok\n")
    await site.session()
    _, text = await site.get(f"{site.https}/metrics")
    assert "capsulekit_sessions_total 1\n" in text.decode()
