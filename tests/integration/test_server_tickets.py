"""The ways in: tickets and sessions, redeemed over real HTTP and TLS, and refused to everybody else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from small_site import MAC, OTHER_MAC, Running, make_site, running

from provisioner.server import tickets


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(make_site(tmp_path)) as run:
        yield run


# --- tickets ----------------------------------------------------------------------------------------------------


async def refused(
    site: Running, reason: str, capsys: pytest.CaptureFixture[str], source: str = "127.0.0.1", **form: str
) -> None:
    status, text = await site.post("/v1/session", source=source, **form)
    assert (status, text) == (403, f"ticket refused: {reason}\n")
    assert f"reason={reason}" in capsys.readouterr().err
    _, metrics = await site.get(f"{site.http}/metrics")
    assert f'capsulekit_tickets_refused_total{{reason="{reason}"}} 1\n' in metrics.decode()
    assert site.registry.node(form["mac"]) is None or reason == "used"


async def test_a_ticket_is_redeemed_once(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    ticket = await site.ticket()
    assert (await site.post("/v1/session", ticket=ticket, mac=MAC))[0] == 200
    await refused(site, "used", capsys, ticket=ticket, mac=MAC)


async def test_a_node_without_a_boot_script_gets_its_ticket_by_tls(site: Running) -> None:
    status, text = await site.post("/v1/ticket", mac=MAC.lower())
    assert (status, bool(re.fullmatch(r"ticket [0-9a-f]{32}\n", text))) == (200, True)
    # Bound as one of a boot script is, and good once.
    form = {"ticket": text.split()[1], "mac": MAC}
    assert await site.post("/v1/session", source="127.0.0.2", **form) == (403, "ticket refused: address\n")
    assert await site.post("/v1/session", **{**form, "mac": OTHER_MAC}) == (403, "ticket refused: mac\n")
    assert (await site.post("/v1/session", **form))[0] == 200
    assert await site.post("/v1/session", **form) == (403, "ticket refused: used\n")


@pytest.mark.parametrize("form", [{}, {"mac": ""}, {"mac": "52:54:00:12:34"}, {"mac": "x\ny"}])
async def test_a_ticket_needs_a_mac(site: Running, form: dict[str, str]) -> None:
    status, text = await site.post("/v1/ticket", **form)
    assert (status, text.count("\n")) == (400, 1)


async def test_tickets_are_not_given_out_on_the_plain_port_nor_for_other_bodies(site: Running) -> None:
    async with site.client().post(site.http + "/v1/ticket", data={"mac": MAC}) as answer:
        assert answer.status == 404
    async with site.client().post(site.https + "/v1/ticket", json={"mac": MAC}) as answer:
        assert answer.status == 415


@pytest.mark.parametrize("charset", ["bogus", "zlib", "utf-16"])
@pytest.mark.parametrize("path", ["/v1/ticket", "/v1/session"])
async def test_a_form_in_characters_that_nobody_knows_is_a_bad_request(site: Running, path: str, charset: str) -> None:
    headers = {"Content-Type": f"application/x-www-form-urlencoded; charset={charset}"}
    async with site.client().post(site.https + path, data=f"mac={MAC}&ticket=x", headers=headers) as answer:
        assert (answer.status, (await answer.text()).count("\n")) == (400, 1)
    _, metrics = await site.get(f"{site.http}/metrics")
    assert b"errors" not in metrics


async def test_tickets_and_boot_scripts_of_one_address_are_limited_together(site: Running) -> None:
    site.site.limiter = tickets.RateLimiter(per_second=0.0, burst=2)
    assert (await site.get(f"{site.http}/v1/boot.ipxe?mac={MAC}"))[0] == 200
    assert (await site.post("/v1/ticket", mac=MAC))[0] == 200
    assert (await site.post("/v1/ticket", mac=MAC))[0] == 429
    assert (await site.post("/v1/ticket", mac=MAC, source="127.0.0.2"))[0] == 200


async def test_of_many_who_redeem_one_ticket_at_once_one_wins(site: Running) -> None:
    ticket = await site.ticket()
    answers = await asyncio.gather(*(site.post("/v1/session", ticket=ticket, mac=MAC) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [200] + [403] * 7


async def test_an_expired_ticket_gets_nothing(
    site: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "TICKET_SECONDS", -1.0)
    await refused(site, "expired", capsys, ticket=await site.ticket(), mac=MAC)


async def test_a_ticket_of_another_mac_gets_nothing(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    await refused(site, "mac", capsys, ticket=await site.ticket(OTHER_MAC), mac=MAC)


async def test_a_ticket_from_another_address_gets_nothing(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    await refused(site, "address", capsys, source="127.0.0.2", ticket=await site.ticket(), mac=MAC)


async def test_a_made_up_ticket_gets_nothing(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    await refused(site, "unknown", capsys, ticket="0" * 32, mac=MAC)


async def test_a_refused_try_does_not_spend_the_nodes_own_ticket(site: Running) -> None:
    ticket = await site.ticket()
    assert (await site.post("/v1/session", source="127.0.0.2", ticket=ticket, mac=MAC))[0] == 403
    assert (await site.post("/v1/session", ticket=ticket, mac=MAC))[0] == 200


@pytest.mark.parametrize("mac", ["", "52:54:00:12:34", "52:54:00:12:34:5G", "FF:FF:FF:FF:FF:FF", "a b", "%0Aboot"])
async def test_a_corrupted_mac_is_a_bad_request(site: Running, mac: str) -> None:
    status, text = await site.get(f"{site.http}/v1/boot.ipxe?mac={mac}")
    assert status == 400
    assert text.count(b"\n") == 1


async def test_one_address_can_not_ask_without_end(site: Running) -> None:
    answers = [(await site.get(f"{site.http}/v1/boot.ipxe?mac={MAC}"))[0] for _ in range(70)]
    assert answers[:60] == [200] * 60
    assert 429 in answers
    # Another address is not held back by it.
    assert (await site.get(f"{site.http}/v1/boot.ipxe?mac={MAC}", source="127.0.0.2"))[0] == 200


# --- sessions ---------------------------------------------------------------------------------------------------

GUARDED = ["/v1/scripts/" + "0" * 64, "/v1/blobs/" + "0" * 64]


@pytest.mark.parametrize("key", ["", "0" * 64, "short"])
async def test_without_a_living_session_there_is_nothing(site: Running, key: str) -> None:
    for path in GUARDED:
        assert (await site.get(site.https + path, key=key))[0] == 401
    for path in ("/v1/state/init", "/v1/state/ready", "/v1/progress"):
        status, text = await site.post(path, key=key)
        assert status == 401
        assert "plan" not in text


async def test_a_new_session_ends_the_old_one(site: Running) -> None:
    old, new = await site.session(), await site.session()
    assert (await site.post("/v1/state/ready", key=old))[0] == 401
    assert (await site.post("/v1/state/ready", key=new))[0] == 200


async def test_a_deleted_nodes_session_is_over(site: Running) -> None:
    key = await site.session()
    site.registry.delete_node(MAC)
    assert (await site.post("/v1/state/init", key=key))[0] == 401


async def test_the_plain_port_takes_no_session_and_gives_no_plan(site: Running) -> None:
    async with site.client().post(site.http + "/v1/session", data={"mac": MAC}) as answer:
        assert answer.status == 404
    key = await site.session()
    async with site.client().post(site.http + "/v1/state/init", headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status == 404
