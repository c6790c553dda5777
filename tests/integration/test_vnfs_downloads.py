"""Whatever becomes of a capsule, a node fetches what it was told to boot to the end, and nobody else gets it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from asking_capsule import kit
from edited_capsule import edited
from small_capsule import small_capsule
from small_site import CAPSULE, MAC, OTHER_MAC, Running, make_site, running

from capsulekit.errors import CapsulekitError
from provisioner.catalog import site_catalog
from provisioner.registry.registry import open_registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.remove import delete, delete_generations, older_generations
from provisioner.vnfs.store import VnfsStore

LARGE = 24 << 20  # bytes: more than the buffers of both ends of a connection


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(make_site(tmp_path)) as run:
        yield run


def members(plan: str) -> dict[str, tuple[str, bool]]:
    """Path → (digest, private) of what a plan names."""
    lines = [line.split() for line in plan.splitlines() if line.startswith("file ")]
    return {words[1]: (words[2], words[4] == "private") for words in lines}


async def told(site: Running, mac: str = MAC) -> tuple[str, str]:
    """(session key, plan) of a node that boots now."""
    key = await site.session(mac)
    status, plan = await site.post("/v1/state/init", key=key)
    assert status == 200, plan
    return key, plan


async def commands(site: Running, *lines: str) -> None:
    """Commands at the site, while the server runs."""
    for line in lines:
        done = await asyncio.to_thread(kit, site.site.desk.paths, *line.split())
        assert done.status == 0, (line, done)


async def test_a_download_ends_with_the_old_bytes_whatever_happens_and_so_does_a_resumed_one(
    site: Running, tmp_path: Path
) -> None:
    paths = site.site.desk.paths
    await asyncio.to_thread(edited, paths, CAPSULE, {"large": os.urandom(LARGE)})
    key, plan = await told(site)
    digest, private = members(plan)["layers/01-edit.squashfs"]
    identity = next(line.split()[1] for line in plan.splitlines() if line.startswith("identity "))
    assert private
    url, bearer = f"{site.https}/v1/blobs/{digest}", {"Authorization": f"Bearer {key}"}
    async with site.client().get(url, headers=bearer) as slow:
        assert slow.status == 200
        summed = sha256(await slow.content.read(1 << 16))
        # umount, another umount, back, away with all older ones, away with the capsule, and a gc besides.
        await asyncio.to_thread(edited, paths, CAPSULE, {"large": b"now small"})
        await asyncio.to_thread(edited, paths, CAPSULE, {"more": b"x"})
        await commands(site, f"vnfs rollback {CAPSULE} --to 1", f"vnfs delete {CAPSULE} --keep 0 -y")
        await commands(site, f"vnfs delete {CAPSULE} --force -y")
        small_capsule(tmp_path / "o.vnfs", version="2.0")
        await commands(site, f"vnfs import {tmp_path / 'o.vnfs'}", "vnfs delete tiny -y")
        async for piece in slow.content.iter_chunked(1 << 16):
            summed.update(piece)
    assert summed.hexdigest() == digest
    # The line broke in the middle: the rest is asked for now.
    for offset in (0, 4096, LARGE // 2, LARGE):
        bearer["Range"] = f"bytes={offset}-"
        async with site.client().get(url, headers=bearer) as rest:
            assert rest.status == 206
            tail = await rest.read()
        async with site.client().get(url, headers={**bearer, "Range": f"bytes=0-{max(0, offset - 1)}"}) as start:
            head = (await start.read())[:offset]
        assert sha256(head + tail).hexdigest() == digest
    for path, (member, hidden) in members(plan).items():
        where = f"{site.https}/v1/blobs/{member}" if hidden else f"{site.http}/blobs/{member}"
        status, data = await site.get(where, key=key)
        assert (status, sha256(data).hexdigest()) == (200, member), path
    status, sums = await site.get(f"{site.http}/capsules/{identity}/SHA256SUMS")
    assert (status, sha256(sums).hexdigest()) == (200, identity)
    assert (await site.get(f"{site.http}/capsules/{identity}/SHA256SUMS.minisig"))[0] == 200


async def test_a_node_gets_what_it_was_told_and_what_is_current_and_nothing_else_that_is_private(
    site: Running,
) -> None:
    paths, store = site.site.desk.paths, site.site.desk.store
    key, _ = await told(site)
    other, _ = await told(site, OTHER_MAC)
    made = []
    for number in range(3):
        if number == 1:
            key, plan = await told(site)
        made.append(await asyncio.to_thread(edited, paths, CAPSULE, {"a": os.urandom(99)}))
    layers = [store.digests(CAPSULE, one)[f"layers/0{number}-edit.squashfs"] for number, one in enumerate(made, 1)]
    assert members(plan)["layers/01-edit.squashfs"] == (layers[0], True)
    await commands(site, f"vnfs rollback {CAPSULE} --to 1")

    async def got(session: str) -> list[int]:
        return [(await site.get(f"{site.https}/v1/blobs/{layer}", key=session))[0] for layer in layers]

    assert await got(key) == [200, 404, 404], "told the second generation, current is the first"
    assert await got(other) == [404, 404, 404]
    sums = [(await site.get(f"{site.http}/capsules/{one}/SHA256SUMS"))[0] for one in made]
    assert sums == [200, 404, 404]
    assert [(await site.get(f"{site.http}/blobs/{layer}"))[0] for layer in layers] == [404] * 3
    await commands(site, f"vnfs rollback {CAPSULE} --to 3")
    assert await got(other) == [200, 200, 404], "told the first, current is the third"
    site.registry.set_nodes("enabled", "0", [MAC])
    assert await got(key) == [404, 404, 404], "a disabled node gets nothing at all"


async def test_a_node_that_boots_something_else_lets_the_old_generation_go(site: Running) -> None:
    paths, store = site.site.desk.paths, site.site.desk.store
    await asyncio.to_thread(edited, paths, CAPSULE, {"a": b"1" * 9999})
    key, plan = await told(site)
    layer = members(plan)["layers/01-edit.squashfs"][0]
    await commands(site, f"vnfs rollback {CAPSULE}", f"vnfs delete {CAPSULE} -g 2 -y")
    assert (await site.get(f"{site.https}/v1/blobs/{layer}", key=key))[0] == 200
    key, _ = await told(site)
    assert store.blob(layer).exists(), "no gc ran since"
    await asyncio.to_thread(edited, paths, CAPSULE, {"a": b"2"})
    await commands(site, f"vnfs rollback {CAPSULE}", f"vnfs delete {CAPSULE} --keep 0 -y")
    assert not store.blob(layer).exists()
    assert (await site.get(f"{site.https}/v1/blobs/{layer}", key=key))[0] == 404


# --- a plan that is handed out at the very moment of a deletion


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    paths = make_site(tmp_path)
    registry = open_registry(paths)
    desk = Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))
    assert desk.join(MAC)
    yield desk
    registry.close()


def all_there(desk: Desk, plan: str) -> bool:
    return all(desk.store.blob(digest).exists() for digest, _ in members(plan).values())


def test_of_a_plan_and_a_deletion_at_once_one_notices(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    record = desk.registry.record_booted

    def deleted_before(mac: str, plan: str) -> None:
        delete(desk.store, [CAPSULE], used=True)
        record(mac, plan)

    def deleted_after(mac: str, plan: str) -> None:
        record(mac, plan)
        done = delete(desk.store, [CAPSULE], used=True)
        assert [one.nodes for one in done.kept] == [("n0000",)]

    monkeypatch.setattr(desk.registry, "record_booted", deleted_after)
    plan = desk.plan(MAC)
    with pytest.raises(CapsulekitError, match="is not installed"):
        desk.hand_out(MAC)
    assert all_there(desk, plan), "a node that had got it could fetch it"
    desk.store.import_file(desk.paths.state.parent / "tiny.vnfs")
    monkeypatch.setattr(desk.registry, "record_booted", deleted_before)
    with pytest.raises(CapsulekitError, match="is not installed"):
        desk.hand_out(MAC)


def test_a_plan_of_what_was_switched_meanwhile_is_made_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    record, made = desk.registry.record_booted, list[str]()

    def switched(mac: str, plan: str) -> None:
        if not made:
            made.append(edited(desk.paths, CAPSULE, {"a": b""}))
        record(mac, plan)

    monkeypatch.setattr(desk.registry, "record_booted", switched)
    plan = desk.hand_out(MAC)
    assert made and f"\nidentity {made[0]}\n" in plan


@pytest.mark.slow
def test_every_plan_that_is_handed_out_among_deletions_can_be_fetched(desk: Desk) -> None:
    end, wrong = time.monotonic() + 6, list[str]()

    def change() -> None:
        while time.monotonic() < end:
            edited(desk.paths, CAPSULE, {"a": os.urandom(9)}, registry=desk.registry)
            delete_generations(desk.store, {CAPSULE: older_generations(desk.store, CAPSULE, 0)})

    changing = threading.Thread(target=change)
    changing.start()
    plans = set[str]()
    while changing.is_alive():
        try:
            plan = desk.hand_out(MAC)
        except CapsulekitError:  # it asks again
            continue
        plans.add(plan)
        for _ in range(3):
            if not all_there(desk, plan):
                wrong.append(plan)
    changing.join()
    assert len(plans) > 3 and wrong == []
