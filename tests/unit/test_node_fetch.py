"""Stage 1 fetching from real servers that misbehave, with the real curl, under busybox ash and dash."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blob_server import Blobs, blob_servers
from node_shell import Node, a_plan, node

__all__ = ["node"]  # the fixture
NAME = "layers/rootfs.squashfs"
PATIENT = "FETCH_ROUNDS=3; sleep() { :; }; "

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@dataclass
class Net:
    """A node, two mirrors and a master that all have one file, and where it goes."""

    node: Node
    mirrors: list[Blobs]
    master: Blobs
    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def got(self) -> bytes:
        return (self.node.run / "f").read_bytes()

    @property
    def console(self) -> str:
        path = self.node.run.parent / "console"
        return path.read_text() if path.exists() else ""

    def use(self, *mirrors: Blobs) -> None:
        (self.node.run / "mirrors").write_text("".join(f"{m.url}\n" for m in mirrors))

    def script(self, kind: str = "public") -> str:
        take = f'take "$RUN/f" {NAME} {self.digest} {len(self.data)} {kind} 3'
        return f'{PATIENT}[ -e "$RUN/f" ] || printf abc >"$RUN/f"; {take}'

    def take(self) -> None:
        self.node.out(self.script())
        assert self.got == b"abc" + self.data

    def refused(self) -> str:
        return self.node.reason(self.script())


@pytest.fixture
def net(node: Node, tmp_path: Path) -> Iterator[Net]:
    data = os.urandom(100_000)
    with blob_servers(tmp_path, 3) as (first, second, master):
        for server in (first, second, master):
            (server.folder / hashlib.sha256(data).hexdigest()).write_bytes(data)
        (node.site / "masters").write_text(f"{master.url} https://127.0.0.1:1\n")
        made = Net(node, [first, second], master, data)
        made.use()
        yield made


# --- one master


def test_a_file_with_the_right_digest_is_appended(net: Net) -> None:
    net.take()
    assert [line[1:] for line in net.master.log] == [["-", "200", "100000"]]


def test_a_wrong_digest_is_fetched_once_more_then_fails_and_leaves_the_file_as_it_was(net: Net) -> None:
    net.master.mode("garbage")
    bad = hashlib.sha256(bytes(b ^ 0x55 for b in net.data)).hexdigest()
    assert net.refused() == f"{NAME}: digest mismatch: expected {net.digest} got {bad}"
    assert net.got == b"abc"
    assert net.console.count("fetching it once more") == 1
    assert len(net.master.log) == 2


def test_a_short_file_is_said_to_be_truncated_and_its_bytes_stay_for_the_next_attempt(net: Net) -> None:
    (net.master.folder / net.digest).write_bytes(net.data[:400])
    assert net.refused().startswith(f"{NAME}: truncated: 400 of 100000 bytes (")
    assert net.got == b"abc" + net.data[:400]
    (net.master.folder / net.digest).write_bytes(net.data)
    net.take()
    assert net.master.log[-1][1:] == ["bytes=400-", "206", "99600"]


def test_a_server_that_never_stops_cannot_fill_the_memory(net: Net) -> None:
    net.master.mode("endless")
    assert f"{NAME}: longer than 100000 bytes" in net.refused()
    assert net.got == b"abc"


def test_a_cut_download_goes_on_where_it_was_cut(net: Net) -> None:
    net.master.mode("cut 30000")
    net.take()
    assert [line[1] for line in net.master.log] == ["-", "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_a_server_without_ranges_does_not_garble_the_file(net: Net) -> None:
    (net.node.run / "f").write_bytes(b"abc" + net.data[:5000])
    net.master.mode("noranges")
    net.take()


@pytest.mark.parametrize("size", [100_000, 512 * 195 - 3])
def test_a_master_that_lies_about_ranges_is_asked_for_the_whole(net: Net, size: int) -> None:
    net.data = net.data[:size]
    (net.master.folder / net.digest).write_bytes(net.data)
    (net.node.run / "f").write_bytes(b"abc" + net.data[:5000])
    net.master.mode("lying")
    net.take()
    assert [line[1] for line in net.master.log] == ["bytes=5000-", "-"]


def test_a_mirror_that_lies_about_ranges_is_not_asked_again(net: Net) -> None:
    first, second = net.mirrors
    first.mode("cut 5000")
    second.mode("lying")
    net.use(first, second)
    net.take()
    assert [line[1] for line in second.log] == ["bytes=5000-"]
    assert (net.node.run / "mirrors").read_text() == ""
    assert [line[1] for line in net.master.log] == ["-"]


def test_an_error_in_place_of_a_range_keeps_what_is_there(net: Net) -> None:
    (net.node.run / "f").write_bytes(b"abc" + net.data[:5000])
    net.master.mode("error")
    assert f"{NAME}: truncated: 5000 of 100000 bytes (curl: (22)" in net.refused()
    assert net.got == b"abc" + net.data[:5000]


def test_a_master_that_no_longer_has_it_ends_the_waiting_at_once(net: Net) -> None:
    net.master.mode("missing")
    assert net.refused() == f"{NAME}: no longer on the master (404): the capsule was replaced or removed"
    assert len(net.master.log) == 1


def test_a_redirect_is_not_followed_and_its_page_not_taken(net: Net) -> None:
    net.master.mode("redirect")
    (net.master.folder / "elsewhere").write_bytes(net.data)
    assert NAME in net.refused()
    assert net.got == b"abc"
    assert {line[1] for line in net.master.log} == {"-"} and "/elsewhere" not in {line[0] for line in net.master.log}


# --- several masters


def test_the_next_master_is_asked_when_one_is_gone(net: Net) -> None:
    (net.node.site / "masters").write_text(f"http://127.0.0.1:1 https://127.0.0.1:1\n{net.master.url} https://x\n")
    net.take()
    assert "http://127.0.0.1:1: truncated: 0 of 100000 bytes (curl: (7)" in net.console


def test_wrong_bytes_of_one_master_are_fetched_from_the_other(net: Net) -> None:
    bad = net.mirrors[0]
    bad.mode("garbage")
    (net.node.site / "masters").write_text(f"{bad.url} https://a\n{net.master.url} https://b\n")
    net.take()
    assert len(bad.log) == 1


# --- mirrors


def test_a_mirror_is_asked_before_the_master(net: Net) -> None:
    net.use(net.mirrors[0])
    net.take()
    assert len(net.mirrors[0].log) == 1
    assert net.master.log == []


@pytest.mark.parametrize("mode", ["garbage", "error", "missing", "endless", "redirect", "cut 5", "hang 5000"])
def test_whatever_a_mirror_does_the_file_comes_from_the_next_source(net: Net, mode: str) -> None:
    bad, good = net.mirrors
    bad.mode(mode)
    net.use(bad, good)
    began = time.monotonic()
    # The real limits are half a minute.
    script = net.script().replace("take ", "true; take ", 1)
    net.node.out(script.replace("FETCH_ROUNDS=3;", 'FETCH_ROUNDS=3; curl() { command curl "$@" --speed-time 2; };'))
    assert net.got == b"abc" + net.data
    assert net.master.log == []
    assert bad.url in net.console
    assert time.monotonic() - began < 30
    left = (net.node.run / "mirrors").read_text().split()
    # One that lacks a file may have the next; any other fault ends its use.
    assert left == ([bad.url, good.url] if mode == "missing" else [good.url])


def test_two_bad_mirrors_do_not_stop_a_boot(net: Net) -> None:
    for mirror in net.mirrors:
        mirror.mode("garbage")
    net.use(*net.mirrors)
    net.take()
    assert net.console.count("is not asked again") == 2
    assert len(net.master.log) == 1


def test_a_half_from_a_lying_mirror_is_not_held_against_the_master(net: Net) -> None:
    (net.mirrors[0].folder / net.digest).write_bytes(os.urandom(50_000))
    net.use(net.mirrors[0])
    net.take()
    assert [line[1] for line in net.master.log] == ["bytes=50000-", "-"]


def test_a_half_from_a_mirror_of_an_earlier_attempt_is_not_held_against_the_master(net: Net) -> None:
    (net.mirrors[0].folder / net.digest).write_bytes(os.urandom(50_000))
    net.use(net.mirrors[0])
    net.master.mode("error")
    assert "truncated: 50000 of 100000 bytes" in net.refused()
    net.use()
    net.master.mode("good")
    net.take()
    assert f"mirror {net.mirrors[0].url} is not asked again" in net.console
    assert "fetching it once more" not in net.console


def test_a_cut_is_resumed_at_another_source(net: Net) -> None:
    net.mirrors[0].mode("cut 70000")
    net.use(net.mirrors[0])
    net.take()
    assert net.master.log[0][1] == "bytes=70000-"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs a kernel with IPv6")
def test_mirrors_and_masters_may_be_ipv6_addresses(net: Net, tmp_path: Path) -> None:
    six = [Blobs(tmp_path / name, "::1") for name in ("six-mirror", "six-master")]
    try:
        for server in six:
            (server.folder / net.digest).write_bytes(net.data)
        (net.node.site / "masters").write_text(f"{six[1].url} https://[::1]:1\n")
        net.use(six[0])
        net.take()
        six[0].mode("cut 30000")
        (net.node.run / "f").unlink()
        net.take()
        assert [line[1] for line in six[1].log] == ["bytes=30000-"]
        # Several in one curl, as small files come: its settings file spells the address in brackets too.
        (net.node.run / "session.curl").write_text("")
        (net.node.run / "masters.all").write_text(f"x {six[1].url}\n")
        six[1].mode("good")
        plain = 'tls() { curl -q -sS "$@"; }; '
        net.node.out(f'{plain}echo "$RUN/small {net.digest} {len(net.data)}" | prefetch script')
        assert six[1].log[-1][0] == f"/v1/scripts/{net.digest}"
        assert (net.node.run / "small.part").read_bytes() == net.data
    finally:
        for server in six:
            server.close()


def test_private_files_are_never_asked_of_a_mirror(net: Net) -> None:
    net.use(net.mirrors[0])
    assert "truncated" in net.node.reason(net.script("private"))
    assert net.mirrors[0].log == []
    assert net.master.log == []


def test_the_session_key_is_sent_to_masters_only(net: Net) -> None:
    (net.node.run / "session.curl").write_text('header = "Authorization: Bearer key"\n')
    log = net.node.run / "asked"
    fake = f'curl() {{ printf "%s\\n" "$*" >>"{log}"; }}; '
    for what in ("public http://m/blobs/x", "public https://m/v1/blobs/x", "private https://m/v1/blobs/x"):
        net.node.out(f"{fake}get {what}")
    plain, mirror, master = log.read_text().splitlines()
    assert "session.curl" not in plain + mirror
    assert "-K" in master and "--cacert" in master and "--insecure" not in master


@pytest.mark.parametrize(("order", "kinds"), [("listed", 1), ("shuffled", 2)])
def test_mirrors_and_masters_are_tried_in_the_sites_order(node: Node, order: str, kinds: int) -> None:
    (node.site / "order").write_text(order + "\n")
    (node.site / "masters").write_text("".join(f"http://m{n} https://m{n}\n" for n in range(4)))
    mirrors = "\n".join(f"mirror http://c{n}" for n in range(4))
    (node.run / "plan").write_text(a_plan(extra=mirrors))
    uuid = node.proc / "sys/kernel/random/uuid"
    seen = set()
    for number in range(8):
        uuid.unlink(missing_ok=True)
        uuid.symlink_to("/proc/sys/kernel/random/uuid")
        (node.run / "masters.all").unlink(missing_ok=True)
        out = node.out("random_number() { read -r u </proc/sys/kernel/random/uuid; echo $((0x${u%%-*})); }; "
                       'mirrors_from_plan; cat "$RUN/mirrors"; masters')  # fmt: skip
        assert sorted(out.splitlines()) == sorted(
            [f"http://c{n}" for n in range(4)] + [f"http://m{n} https://m{n}" for n in range(4)]
        )
        seen.add(out)
        assert number >= 0
    assert min(len(seen), 2) == kinds


def test_the_master_that_answered_stays_the_first(node: Node) -> None:
    (node.site / "masters").write_text("http://a https://a\nhttp://b https://b\n")
    (node.run / "master").write_text("http://b https://b\n")
    assert node.out("masters") == "http://b https://b\nhttp://a https://a\n"


# --- files of their own, many at once


def test_a_file_that_is_there_and_right_is_not_fetched_again(net: Net) -> None:
    target = net.node.run / "d" / "m"
    script = f'{PATIENT}take_file "{target}" m {net.digest} {len(net.data)} public'
    net.node.out(script)
    net.node.out(script)
    assert len(net.master.log) == 1
    target.write_bytes(net.data[:-1] + b"?")
    net.node.out(script)
    assert target.read_bytes() == net.data
    assert len(net.master.log) == 2


def test_small_files_from_a_server_that_never_stops_do_not_fill_the_memory(net: Net) -> None:
    net.master.mode("endless")
    (net.node.run / "session.curl").write_text("")
    (net.node.site / "masters").write_text(f"x {net.master.url}\n")
    plain = 'tls() { command curl -q -sS --max-time 5 "$@"; }; '
    net.node.out(f'{plain}echo "$RUN/small {net.digest} 1000" | prefetch script')
    assert (net.node.run / "small.part").stat().st_size <= 1024


def test_many_small_files_come_over_one_connection_and_a_wrong_one_is_fetched_again(net: Net) -> None:
    texts = [f"script {n}\n".encode() for n in range(5)]
    for text in texts:
        (net.master.folder / hashlib.sha256(text).hexdigest()).write_bytes(text)
    lines = [f"{net.node.run}/s/{n} {hashlib.sha256(t).hexdigest()} {len(t)}" for n, t in enumerate(texts)]
    (net.node.run / "session.curl").write_text("")
    (net.node.site / "masters").write_text(f"x {net.master.url}\n")
    # The plain server stands in for TLS, which the tests of the whole client use.
    plain = (
        'curls=0; tls() { echo one >>"$RUN/curls"; curl -q -sS "$@"; }; '
        f'get() {{ curl -q -sS -f "$2"; }}; {PATIENT}prefetch script; '
    )
    (net.node.run / "wanted").write_text("\n".join(lines) + "\n")
    spoil = "printf 'script X\\n' >\"$RUN/s/3.part\"; "
    each = "".join(f'take_file "{line.split()[0]}" x {" ".join(line.split()[1:])} script; ' for line in lines)
    net.node.out(f'{{ {plain} }} <"$RUN/wanted"; {spoil}{each}')
    assert [(net.node.run / "s" / str(n)).read_bytes() for n in range(5)] == texts
    assert (net.node.run / "curls").read_text() == "one\n"
    # Five at once, and the spoilt one again.
    assert len(net.master.log) == 6
