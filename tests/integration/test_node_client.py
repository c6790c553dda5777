"""Stage 1's own shell against the real master over real TLS, under busybox ash and dash: ticket, plan, sums, files."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blob_server import blob_servers
from node_shell import SHELLS, Node
from small_capsule import AUTHOR
from small_site import MAC, PRIVATE, SECRET_CONTENT, Running, make_site, running

from capsulekit.files import sha256_bytes
from capsulekit.trust import minisign
from provisioner import pki

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("busybox", "curl", "dash", "minisign"))), reason="needs busybox, curl, dash, minisign"
)
QUICK = "FETCH_ROUNDS=2; sleep() { :; }; "
WHOLE = "mirrors_from_plan; keep_what_fits >/dev/null; get_sums; get_members; compose; get_scripts; "


@dataclass
class Client:
    """A node's folder beside a running master."""

    node: Node
    site: Running

    async def out(self, script: str) -> str:
        return await asyncio.to_thread(self.node.out, QUICK + script)

    async def reason(self, script: str) -> str:
        return await asyncio.to_thread(self.node.reason, QUICK + script)

    async def plan(self) -> str:
        """Open a session without a boot script's ticket, and get the plan."""
        await self.out(f"open_session '' {MAC}; get_plan {MAC}")
        return (self.node.run / "plan").read_text()

    @property
    def console(self) -> str:
        path = self.node.run.parent / "console"
        return path.read_text() if path.exists() else ""


def client_of(site: Running, node: Node) -> Client:
    """What site.img would have brought to the node."""
    (node.site / "masters").write_text(f"{site.http} {site.https}\n")
    (node.site / "ca.pem").write_bytes(pki.ca_path(site.site.desk.paths).read_bytes())
    (node.site / "keys/author.pub").write_text(AUTHOR.public.file_text)
    return Client(node, site)


@pytest.fixture(params=sorted(SHELLS))
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    return Node(SHELLS[request.param], tmp_path)


@pytest.fixture
async def client(node: Node, tmp_path: Path) -> AsyncIterator[Client]:
    async with running(make_site(tmp_path / "site")) as run:
        yield client_of(run, node)


# --- the way in


async def test_a_boot_scripts_ticket_opens_the_session(client: Client) -> None:
    ticket = await client.site.ticket()
    await client.out(f"open_session {ticket} {MAC}; get_plan {MAC}")
    assert (client.node.run / "detail").read_text() == "n0000 boots tiny-1.0.amd64\n"
    assert (client.node.run / "session.curl").stat().st_mode & 0o777 == 0o600
    assert not (client.node.run / "ticket").exists()


async def test_without_a_boot_script_the_node_asks_for_a_ticket_itself(client: Client) -> None:
    assert f"nodeid {MAC}\n" in await client.plan()


async def test_a_refused_ticket_is_replaced_by_one_asked_for(client: Client) -> None:
    ticket = await client.site.ticket()
    await client.site.post("/v1/session", ticket=ticket, mac=MAC)
    start = f"open_session {ticket} {MAC}"
    assert await client.reason(start) == "the master refused the ticket: ticket refused: used"
    assert not (client.node.run / "reboot").exists()
    await client.out(f"{start}; get_plan {MAC}")


async def test_a_session_the_master_lost_is_replaced_at_the_next_attempt(client: Client) -> None:
    await client.plan()
    client.site.registry.delete_node(MAC)
    assert await client.reason(f"get_plan {MAC}") == "the master no longer knows this session (401)"
    assert "nodeid" in await client.plan()


async def test_a_master_with_another_authority_is_not_believed(client: Client, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other")
    (client.node.site / "ca.pem").write_bytes(pki.ca_path(other).read_bytes())
    reason = await client.reason(f"open_session '' {MAC}")
    assert reason.startswith("no master answers: curl: (60)")
    assert (await asyncio.to_thread(client.node.do, "master_answers")).returncode != 0


async def test_any_master_of_the_list_will_do(client: Client) -> None:
    masters = client.node.site / "masters"
    masters.write_text("http://127.0.0.1:1 https://127.0.0.1:1\n" + masters.read_text())
    await client.plan()
    assert (client.node.run / "master").read_text() == f"{client.site.http} {client.site.https}\n"
    await client.out("master_answers")


# --- everything a node boots


async def test_all_of_a_capsule_arrives_verified_and_in_its_place(client: Client, tmp_path: Path) -> None:
    await client.plan()
    await client.out(WHOLE)
    assert (tmp_path / "capsule/boot/vmlinuz").read_bytes() == SECRET_CONTENT["boot/vmlinuz"]
    archive = (tmp_path / "initrd").read_bytes()
    assert archive.startswith(SECRET_CONTENT["boot/initrd.img"])
    record = [line.split() for line in (client.node.run / "composed").read_text().splitlines()]
    assert [line[0] for line in record] == [
        "boot/initrd.img", "layers/modules.squashfs", "layers/rootfs.squashfs", PRIVATE,
    ]  # fmt: skip
    for path, digest, at, size, _end in record:
        data = archive[int(at) : int(at) + int(size)]
        assert (data, digest) == (SECRET_CONTENT[path], sha256_bytes(data))
    # The modules' scripts, over one connection.
    scripts = {path.name for path in (client.node.run / "scripts").iterdir()}
    assert scripts and all(sha256_bytes((client.node.run / "scripts" / n).read_bytes()) == n for n in scripts)
    again = await client.out("keep_what_fits")
    assert int(again) == len(archive)


async def test_reports_reach_the_registry_in_one_connection(client: Client) -> None:
    await client.plan()
    await client.out("good() { detail fine; }; bad() { fail 'no luck'; }; step sums good; "
                     "SENT=0; (step members bad) || :")  # fmt: skip
    events = [(e.step, e.status, e.detail) for e in client.site.registry.events(MAC) if e.kind == "step"]
    assert events == [("sums", "start", ""), ("sums", "ok", "fine"), ("members", "start", ""),
                      ("members", "failed", "no luck")]  # fmt: skip
    assert list((client.node.run / "queue").iterdir()) == []


async def test_an_older_signed_list_is_refused(client: Client) -> None:
    await client.plan()
    folder = client.site.site.desk.store.folder("tiny-1.0.amd64")
    older = (folder / "SHA256SUMS").read_bytes().replace(b"0", b"1")
    comment = next(line for line in (folder / "SHA256SUMS.minisig").read_text().splitlines() if "trusted" in line)
    signature = minisign.sign(older, AUTHOR, comment.removeprefix("trusted comment: "))
    (folder / "SHA256SUMS").write_bytes(older)
    (folder / "SHA256SUMS.minisig").write_text(signature)
    assert (await client.reason(WHOLE)).startswith("SHA256SUMS: digest mismatch: expected ")


async def test_a_capsule_that_vanishes_is_named_and_the_next_plan_is_another(client: Client) -> None:
    plan = await client.plan()
    layer = next(line.split()[2] for line in plan.splitlines() if line.startswith("file layers/rootfs.squashfs "))
    blob = client.site.site.desk.store.blob(layer)
    kept = blob.read_bytes()
    blob.unlink()
    reason = await client.reason(WHOLE)
    assert reason == "layers/rootfs.squashfs: no longer on the master (404): the capsule was replaced or removed"
    blob.write_bytes(kept)
    blob.chmod(0o644)
    await client.out(f"get_plan {MAC}; {WHOLE}")


async def test_mirrors_of_the_site_are_asked_first_and_only_for_public_files(node: Node, tmp_path: Path) -> None:
    paths = make_site(tmp_path / "site")
    with blob_servers(tmp_path, 1) as (mirror,):
        conf = paths.config / "site.toml"
        conf.write_text(conf.read_text().replace('mirrors = ""', f'mirrors = "{mirror.url}"'))
        for data in SECRET_CONTENT.values():
            (mirror.folder / sha256_bytes(data)).write_bytes(data)
        rootfs = sha256_bytes(SECRET_CONTENT["layers/rootfs.squashfs"])
        (mirror.folder / rootfs).write_bytes(b"garbage")
        async with running(paths) as run:
            client = client_of(run, node)
            assert f"mirror {mirror.url}\n" in await client.plan()
            await client.out(WHOLE)
        asked = {line[0].rpartition("/")[2] for line in mirror.log}
        assert sha256_bytes(SECRET_CONTENT["boot/vmlinuz"]) in asked
        assert sha256_bytes(SECRET_CONTENT[PRIVATE]) not in asked
        assert f"mirror {mirror.url}" in client.console
    assert SECRET_CONTENT["layers/rootfs.squashfs"] in (tmp_path / "initrd").read_bytes()


def test_the_shells_are_the_real_ones() -> None:
    for argv in SHELLS.values():
        assert subprocess.run([*argv, "-c", "echo $((1 + 1))"], capture_output=True, check=True).stdout == b"2\n"
