"""What nodes are made of, told to the real application over TLS, and shown by the commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import fake_sysfs as fake
import pytest
from small_site import MAC, OTHER_MAC, Running, make_site, running

from capsulekit.cli.main import main
from provisioner.devices import Device, parse_devices

LIST = f"{fake.E1000} e1000 module=e1000 boot\n{fake.AHCI} ahci module=ahci count=2\n{fake.MLX5} -\n".encode()
BOOT = Device(fake.E1000, "e1000", "e1000", boot=True)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(make_site(tmp_path)) as run:
        yield run


async def send(
    site: Running, body: bytes | AsyncIterator[bytes], key: str, kind: str = "text/plain"
) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": kind}
    async with site.client().post(f"{site.https}/v1/devices", data=body, headers=headers) as answer:
        return answer.status, await answer.text()


def kept(site: Running, mac: str = MAC) -> tuple[Device, ...]:
    known = site.registry.node_hardware().get(mac)
    return site.registry.devices_of(known[0]) if known else ()


async def test_a_nodes_devices_reach_the_registry_and_the_log(
    site: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    key = await site.session()
    assert await send(site, LIST, key) == (200, "ok\n")
    assert kept(site) == parse_devices(LIST)
    assert "kinds=3 without-driver=1" in capsys.readouterr().err
    _, metrics = await site.get(f"{site.http}/metrics")
    assert b"capsulekit_device_lists_total 1\n" in metrics


async def test_a_later_list_replaces_the_earlier_one(site: Running) -> None:
    key = await site.session()
    await send(site, LIST, key)
    assert await send(site, f"{fake.E1000} e1000 module=e1000 boot".encode(), key) == (200, "ok\n")
    assert kept(site) == (BOOT,)


async def test_curl_as_stage_1_calls_it_is_understood(site: Running, tmp_path: Path) -> None:
    from provisioner import pki

    (tmp_path / "list").write_bytes(LIST)
    (tmp_path / "session").write_text(f'header = "Authorization: Bearer {await site.session()}"\n')
    argv = ["curl", "-q", "-sS", "--cacert", str(pki.ca_path(site.site.desk.paths)), "-K", str(tmp_path / "session")]
    argv += ["-H", "Content-Type: text/plain", "--data-binary", f"@{tmp_path / 'list'}", f"{site.https}/v1/devices"]
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert (await child.communicate())[0] == b"ok\n"
    assert kept(site) == parse_devices(LIST)


@pytest.mark.parametrize("key", ["", "0" * 64, "short"])
async def test_without_a_living_session_nothing_is_taken(site: Running, key: str) -> None:
    await site.session()
    assert (await send(site, LIST, key))[0] == 401
    assert kept(site) == ()


async def test_a_session_of_one_node_tells_nothing_about_another(site: Running) -> None:
    mine = await site.session()
    await site.session(OTHER_MAC)
    await send(site, LIST, mine)
    assert (len(kept(site)), kept(site, OTHER_MAC)) == (3, ())


async def test_a_deleted_nodes_list_is_refused_and_leaves_nothing(site: Running) -> None:
    key = await site.session()
    await send(site, LIST, key)
    site.registry.delete_node(MAC)
    assert (await send(site, LIST, key))[0] == 401
    assert site.registry.modaliases() == []


async def test_a_node_deleted_while_its_list_arrives_is_unknown(site: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    key, record = await site.session(), site.registry.record_devices

    def deleted_just_before(mac: str, devices: Sequence[Device]) -> bool:
        site.registry.delete_node(mac)
        return record(mac, devices)

    monkeypatch.setattr(site.registry, "record_devices", deleted_just_before)
    assert await send(site, LIST, key) == (401, f"{MAC} is not registered (any more)\n")
    assert site.registry.modaliases() == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "line 1 of the list of devices is not understood"),
        (b"\xff\xfe\x00", "line 1 of"),
        (LIST + b"garbage\n", "line 4 of"),
        (LIST + b"\n", "line 4 of"),
        (b"a:b -\n" * 5000, "has 5000 lines"),
        (b"a:b - count=65536\n", "more than 65535 of one kind"),
    ],
)
async def test_a_bad_list_is_refused_in_one_line_and_the_good_one_stays(
    site: Running, body: bytes, reason: str
) -> None:
    key = await site.session()
    await send(site, LIST, key)
    status, text = await send(site, body, key)
    assert status == 400
    assert reason in text
    assert text.count("\n") == 1
    assert kept(site) == parse_devices(LIST)


async def test_a_list_too_long_is_cut_off_whether_its_length_is_said_or_not(site: Running) -> None:
    key, line = await site.session(), b"a:" + b"x" * 4000 + b" -\n"

    async def piece_by_piece() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield line

    assert (await send(site, line * 70, key))[0] == 413
    assert await send(site, piece_by_piece(), key) == (413, "the list of devices is longer than 262144 bytes\n")
    assert kept(site) == ()
    assert (await send(site, line * 65, key))[0] == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json", "multipart/form-data"])
async def test_another_kind_of_body_is_not_looked_at(site: Running, kind: str) -> None:
    assert (await send(site, LIST, await site.session(), kind))[0] == 415
    assert kept(site) == ()


async def test_the_plain_port_takes_no_devices(site: Running) -> None:
    headers = {"Authorization": f"Bearer {await site.session()}", "Content-Type": "text/plain"}
    async with site.client().post(f"{site.http}/v1/devices", data=LIST, headers=headers) as answer:
        assert answer.status == 404


async def test_many_nodes_report_at_once(site: Running) -> None:
    macs = [f"52:54:00:00:01:{number:02X}" for number in range(24)]
    keys = await asyncio.gather(*(site.session(mac) for mac in macs))
    own = [f"{fake.E1000} e1000 module=e1000 boot count={number % 5 + 1}\n".encode() for number in range(24)]
    answers = await asyncio.gather(*(send(site, body, key) for body, key in zip(own, keys, strict=True)))
    assert {status for status, _ in answers} == {200}
    for mac, body in zip(macs, own, strict=True):
        assert kept(site, mac) == parse_devices(body)
    assert sorted(len(h.nodes) for h in site.registry.hardware()) == [4, 5, 5, 5, 5]


async def test_node_show_and_status_tell_the_devices(site: Running, capsys: pytest.CaptureFixture[str]) -> None:
    await send(site, LIST, await site.session())
    await site.session(OTHER_MAC)
    paths = site.site.desk.paths
    place = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]

    def said(*words: str) -> str:
        capsys.readouterr()
        assert main([*words, *place]) == 0
        return capsys.readouterr().out

    shown = said("node", "show", "n0000").splitlines()
    assert "n0000:Devices=4" in shown
    assert "n0000:BootDevice=8086:100e e1000" in shown
    assert "n0000:NoDriver=15b3:1017" in shown
    assert {"n0001:Devices=0", "n0001:DevicesTime=", "n0001:NoDriver="} <= set(said("node", "show").splitlines())
    lines = said("node", "status").splitlines()
    assert lines[1].endswith("no driver for 15b3:1017")
    assert "no driver" not in lines[2]
    record = json.loads(said("node", "show", "--json", "n0000"))[0]
    assert {d["modalias"]: d["class"] for d in record["devices"]} == {
        fake.E1000: "network",
        fake.AHCI: "storage",
        fake.MLX5: "network",
    }
    assert json.loads(said("node", "status", "--json"))[0]["no_driver"] == ["15b3:1017"]
