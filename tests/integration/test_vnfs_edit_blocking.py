"""Blocking mode: a node whose capsule is mounted waits, is told who edits it, and goes on by itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from edit_site import NAME, NEEDS_ROOT, SHORT, EditSite, edit_site
from small_site import MAC, OTHER_MAC, Running, running

from capsulekit.edit.record import write_record
from provisioner.vnfs.edits import Edits

pytestmark = [NEEDS_ROOT, pytest.mark.timeout(300)]


@pytest.fixture
def edit(tmp_path: Path) -> Iterator[EditSite]:
    with edit_site(tmp_path) as made:
        yield made


@pytest.fixture
async def site(edit: EditSite) -> AsyncIterator[Running]:
    async with running(edit.paths) as made:
        yield made


async def off(edit: EditSite, *words: str | Path) -> str:
    """A command, while the server goes on."""
    return await asyncio.to_thread(edit.good, *words)


def plan_of(text: str) -> dict[str, str]:
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in text.splitlines()}


async def test_a_node_waits_with_who_and_since_and_goes_on_with_the_new_generation(
    site: Running, edit: EditSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    key = await site.session()
    await off(edit, "mount", SHORT, "--at", edit.at)
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(edit.record.since))
    told = f"capsule-mounted {NAME} is mounted for editing by alice since {since}"
    assert await site.post("/v1/state/init", key=key) == (202, f"wait {told}\n")
    node = site.registry.node(MAC)
    assert node is not None and (node.status, node.error) == ("waiting", told)
    assert f"waiting: {told}" in await off(edit, "node", "status")
    (edit.at / "etc/motd").write_text("new\n")
    site.site.hold = 60.0
    waiting = asyncio.create_task(site.post("/v1/state/init", key=key))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await off(edit, "umount", SHORT)
    status, plan = await asyncio.wait_for(waiting, 10)
    assert status == 200 and plan_of(plan)["identity"] == edit.identity
    assert "layers/01-edit.squashfs" in plan


async def test_close_lets_it_go_on_with_what_it_was(site: Running, edit: EditSite) -> None:
    base, key = edit.identity, await site.session()
    await off(edit, "mount", SHORT, "--at", edit.at)
    site.site.hold = 60.0
    waiting = asyncio.create_task(site.post("/v1/state/init", key=key))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await off(edit, "-y", "close", SHORT)
    status, plan = await asyncio.wait_for(waiting, 10)
    assert status == 200 and plan_of(plan)["identity"] == base


async def test_no_block_lets_it_take_the_last_generation(site: Running, edit: EditSite) -> None:
    base, key = edit.identity, await site.session()
    said = await off(edit, "mount", SHORT, "--at", edit.at, "--no-block")
    assert "take the last generation meanwhile" in said
    status, plan = await site.post("/v1/state/init", key=key)
    assert status == 200 and plan_of(plan)["identity"] == base


async def test_who_is_running_or_under_way_is_left_alone(site: Running, edit: EditSite) -> None:
    """Its scripts and its capsule's members are there for it: it had its plan before."""
    key = await site.session()
    status, plan = await site.post("/v1/state/init", key=key)
    assert status == 200
    digests = [line.split()[2] for line in plan.splitlines() if line.startswith("file ")]
    await off(edit, "mount", SHORT, "--at", edit.at)
    for digest in digests:
        assert (await site.get(f"{site.https}/v1/blobs/{digest}", key=key))[0] == 200
    assert (await site.post("/v1/state/ready", key=key))[0] == 200


async def test_a_node_of_another_capsule_does_not_wait(site: Running, edit: EditSite) -> None:
    await off(edit, "vnfs", "clone", NAME, "other")
    key = await site.session(OTHER_MAC)
    site.registry.set_nodes("vnfs", "other", [OTHER_MAC])
    await off(edit, "mount", SHORT, "--at", edit.at)
    assert (await site.post("/v1/state/init", key=key))[0] == 200


async def test_what_a_restarted_master_has_left_blocks_still_and_says_so(site: Running, edit: EditSite) -> None:
    key = await site.session()
    await off(edit, "mount", SHORT, "--at", edit.at)
    edit.reboot()
    status, told = await site.post("/v1/state/init", key=key)
    assert status == 202 and told.endswith(", and the master was restarted meanwhile\n")
    await off(edit, "-y", "close", SHORT)
    assert (await site.post("/v1/state/init", key=key))[0] == 200


async def test_a_record_that_cannot_be_read_blocks_too(site: Running, edit: EditSite) -> None:
    key = await site.session()
    await off(edit, "mount", SHORT, "--at", edit.at)
    (edit.folder() / "record.json").write_bytes(b"\xff")
    status, told = await site.post("/v1/state/init", key=key)
    assert status == 202 and "the record of the edit is damaged" in told


async def test_the_name_of_whoever_edits_can_not_break_the_answer(site: Running, edit: EditSite) -> None:
    key = await site.session()
    await off(edit, "mount", SHORT, "--at", edit.at)
    told = {**vars(edit.record), "who": "al\nice\x1b[2J" + "ü" * 300}
    write_record(edit.folder(), type(edit.record)(**told))
    status, text = await site.post("/v1/state/init", key=key)
    assert status == 202 and text.count("\n") == 1 and text.isascii() and len(text) < 250 and "\x1b" not in text


def test_vnfs_list_shows_what_is_mounted(edit: EditSite) -> None:
    assert "mounted" not in edit.good("vnfs", "list", "-v")
    edit.mount("--no-block")
    assert f", at {edit.at}: nodes take the last generation" in edit.good("vnfs", "list", "-v")
    (row,) = edit.json("vnfs", "list")
    assert (row["mounted"]["at"], row["mounted"]["blocking"]) == (str(edit.at), False)
    edit.good("close", SHORT)
    (row,) = edit.json("vnfs", "list")
    assert row["mounted"] is None


def test_looking_costs_one_stat_as_long_as_nothing_changes(edit: EditSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of waiting nodes ask every second."""
    edits = Edits(edit.paths)
    assert edits.wait_reason(NAME) == ""
    edit.mount()
    first = edits.wait_reason(NAME)
    assert first
    opened: list[object] = []
    real = os.open

    def noting(*words: Any, **more: Any) -> int:
        opened.append(words)
        return real(*words, **more)

    monkeypatch.setattr(os, "open", noting)
    assert edits.wait_reason(NAME) == first and opened == []
    monkeypatch.undo()
    edit.good("close", SHORT)
    assert edits.wait_reason(NAME) == ""
