"""Answers, disks and kernel arguments that are not what they should be: stage 1 neither believes nor follows them."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from node_shell import DIGEST, MAC, Node, a_plan, check, node

__all__ = ["node"]  # the fixture
SCRIPT = f"script init 20 name module {DIGEST['a']} 5 required"


def console(node: Node) -> str:
    path = node.run.parent / "console"
    return path.read_text() if path.exists() else ""


# --- plans


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"extra": SCRIPT.replace("20 name", "20  name")}, 20),
        ({"extra": f"{SCRIPT} "}, 20),
        ({"extra": f" {SCRIPT}"}, 20),
        ({"hostname": "hostname n0001 "}, 3),
        ({"hostname": "hostname  n0001"}, 3),
        ({"init": "init /sbin/init "}, 13),
        ({"debug": "debug 1 "}, 12),
        ({"rootfs": f"file layers/rootfs.squashfs  {DIGEST['d']} 4096 public"}, 18),
    ],
)
def test_spaces_that_a_later_reader_would_trip_over_are_refused(
    node: Node, changes: dict[str, str | None], line: int
) -> None:
    assert check(node, a_plan(**changes)).startswith(f"plan: line {line} is not understood: ")


@pytest.mark.parametrize("name", ["1x-foo", "10-a/b", "10", "-x", "10-", "10-.x", "0010-x", "10-$(id)"])
def test_a_provision_script_that_would_not_be_run_is_refused(node: Node, name: str) -> None:
    lines = f"provision provision/init/{name}\nfile provision/init/{name} {DIGEST['a']} 5 public"
    assert check(node, a_plan(extra=lines)).startswith("plan: line 20 is not understood: ")


@pytest.mark.parametrize("name", ["10-a", "00-Net_1.sh", "99-x-y", "5-x"])
def test_every_provision_script_of_a_plan_is_run(node: Node, name: str) -> None:
    lines = f"provision provision/init/{name}\nfile provision/init/{name} {DIGEST['a']} 5 public"
    assert check(node, a_plan(extra=lines)) == ""
    (line,) = node.out("scripts_list").splitlines()
    assert line.split()[2].endswith(f"/capsule/provision/init/{name}")


@pytest.mark.parametrize("size", ["999999999999999", "99999999999999999999", "-1", "4294967296", "0x10", "1e9"])
def test_a_size_that_nothing_can_have_ends_before_anything_is_fetched(node: Node, size: str) -> None:
    plan = a_plan(rootfs=f"file layers/rootfs.squashfs {DIGEST['d']} {size} public")
    reason = check(node, plan) or node.reason("mem_check 0")
    assert reason.startswith(("plan: line 18 is not understood", "not enough memory: needs "))


def test_a_time_that_no_clock_can_have_stops_no_boot(node: Node) -> None:
    assert check(node, a_plan(time="time 999999999999999")) == ""
    node.out('date() { [ "$1" != -s ] && echo 5; }; clock_from_master "$(plan_value time)"')
    assert "the clock could not be set (to the master's)" in console(node)


# --- a capsule that was replaced on the way


def test_acls_of_an_earlier_plan_do_not_reach_the_next_ones_root(node: Node, tmp_path: Path) -> None:
    acl = f"file layers/rootfs.acl {DIGEST['e']} 5 public"
    assert check(node, a_plan(extra=acl)) == ""
    layers = tmp_path / "capsule/layers"
    layers.mkdir(parents=True)
    for name in ("rootfs.acl", "older.acl"):
        (layers / name).write_text("etc/x\taccess\tu::rwx\n")
    node.out("keep_what_fits; compose_acls")
    archive = (tmp_path / "initrd").read_bytes()
    assert b"layers/rootfs.acl\0" in archive and b"older.acl" not in archive


GET = """
sources() { printf 'master here %s\\n' "$2"; }
get() { head -c 2000 /dev/zero; }
sleep() { :; }
"""


def test_what_an_attempt_wrote_behind_a_whole_file_is_cut_off(node: Node, tmp_path: Path) -> None:
    # It ended while it closed that file: no room, or killed.
    zeros = hashlib.sha256(bytes(2000)).hexdigest()
    plan = a_plan(initrd=f"file boot/initrd.img {zeros} 2000 public", rootfs=f"file layers/rootfs.squashfs {zeros} "
                  "2000 public")  # fmt: skip
    assert check(node, plan) == ""
    node.out(f"{GET}keep_what_fits; compose")
    whole = (tmp_path / "initrd").read_bytes()
    (tmp_path / "initrd").unlink()
    cut = f'{GET}compose_close() {{ printf 07070 >>"$INITRD"; exit 1; }}; keep_what_fits; compose'
    assert node.do(cut).returncode == 1
    assert (tmp_path / "initrd").stat().st_size == 2005
    node.out(f"{GET}keep_what_fits; compose")
    assert (tmp_path / "initrd").read_bytes() == whole


# --- servers


BEGINS_AGAIN = """
sleep() { echo x >>"$RUN/slept"; [ "$(grep -c . "$RUN/slept")" -lt 50 ] || exit 77; }
get() {
    [ "${3:-}" != --range ] || printf 'HTTP/1.1 200 OK\\r\\n' >"$RUN/headers"
    printf %0100d 0
    echo 'curl: (18) transfer closed' >&2
    return 18
}
"""


def test_a_server_that_begins_again_and_is_cut_each_time_is_given_up(node: Node) -> None:
    (node.run / "mirrors").write_text("")
    take = f'printf abc >"$RUN/f"; take "$RUN/f" layers/x.squashfs {DIGEST["a"]} 400 public 3'
    assert node.reason(BEGINS_AGAIN + take).startswith("layers/x.squashfs: truncated: ")
    assert (node.run / "slept").read_text().count("x") <= 8


@contextmanager
def silent_server() -> Iterator[tuple[int, list[socket.socket]]]:
    """(port, connections so far) of a server that closes each connection at once."""
    listening = socket.create_server(("127.0.0.1", 0))
    seen: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                made, _ = listening.accept()
                seen.append(made)
                made.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1], seen
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def test_a_master_that_went_away_costs_one_try_however_many_reports_wait(node: Node) -> None:
    (node.run / "session.curl").write_text('header = "Authorization: Bearer key"\n')
    (node.site / "ca.pem").write_text("")
    with silent_server() as (port, seen):
        (node.run / "master").write_text(f"http://127.0.0.1:{port} https://127.0.0.1:{port}\n")
        done = node.do("for one in 1 2 3 4 5; do queue sums ok 1 x; done; send_queue")
        assert done.returncode == 1
    assert len(seen) == 1
    assert len(list((node.run / "queue").iterdir())) == 5


def test_a_master_that_went_away_costs_one_try_however_many_files_are_wanted(node: Node) -> None:
    (node.run / "session.curl").write_text('header = "Authorization: Bearer key"\n')
    (node.site / "ca.pem").write_text("")
    lines = "".join(f"{node.run}/s/{name} {digest} 5\n" for name, digest in DIGEST.items())
    with silent_server() as (port, seen):
        (node.site / "masters").write_text(f"http://127.0.0.1:{port} https://127.0.0.1:{port}\n")
        node.out('printf %s "$1" | prefetch script', lines)
    assert len(seen) == 1
    assert list((node.run / "s").iterdir()) == []


def test_an_empty_answer_does_not_leave_an_older_plan(node: Node) -> None:
    (node.run / "plan.new").write_text(a_plan())
    assert node.reason(f"tls() {{ printf 200; }}; get_plan {MAC}") == "plan: empty"


def test_what_a_test_forgets_to_replace_does_not_change_the_machine(node: Node) -> None:
    for words in ("date -s @1700000000", "reboot -f", "kexec -e", "ip link", "udhcpc -n"):
        assert node.do(f"{words}; echo went on").stdout == "", words
    assert node.out("clock_now").strip().isdigit()


def test_without_any_master_the_next_attempt_asks_for_a_new_address(node: Node) -> None:
    for name, text in (("lease", "10.0.0.9\n"), ("master", "http://a https://a\n")):
        (node.run / name).write_text(text)
    assert node.reason(f"tls() {{ return 7; }}; open_session abc {MAC}").startswith("no master answers")
    assert not (node.run / "lease").exists() and not (node.run / "master").exists()


def test_nothing_but_the_sites_own_authority_is_believed_and_nothing_but_tls_is_spoken(node: Node) -> None:
    words = node.out('curl() { printf "%s\\n" "$*"; }; tls https://a/')
    assert f"--proto =https --tlsv1.2 --cacert {node.site}/ca.pem " in words and "--noproxy * " in words


# --- the machine


def test_a_disks_links_lead_nowhere(node: Node, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep.new").touch()
    find = 'MODPROBE=true; findfs() { echo /dev/vda1; }; umount() { echo "$*" >"$RUN/umounted"; }; mount() { :; }; '
    for link in ("disk/capsulekit", "disk/capsulekit/blobs"):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(victim)
        node.out(f"{find}disk_open")
        name = link.removeprefix("disk/")
        assert (node.run / "detail").read_text() == f"/dev/vda1 is not used: {name} is a link\n"
        assert (node.run / "umounted").read_text() == f"{tmp_path}/disk\n"
        (tmp_path / link).unlink()
    assert [path.name for path in victim.iterdir()] == ["keep.new"]


def test_a_quote_in_a_devices_name_does_not_keep_other_drivers_out(node: Node, tmp_path: Path) -> None:
    for number, alias in enumerate(("acpi:O'BRIEN:", 'platform:a "b', "acpi:\\", "pci:v00008086d0000100E")):
        device = tmp_path / f"sys/bus/b/devices/d{number}"
        device.mkdir(parents=True)
        (device / "modalias").write_text(alias + "\n")
    program = tmp_path / "modprobe"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >>{tmp_path}/loaded\n")
    program.chmod(0o755)
    node.env |= {"CK_SYS": str(tmp_path / "sys"), "CK_MODPROBE": str(program)}
    node.out("load_for_bus")
    assert sorted((tmp_path / "loaded").read_text().splitlines()) == sorted(
        ["-a", "-q", "acpi:O'BRIEN:", 'platform:a "b', "acpi:\\", "pci:v00008086d0000100E"]
    )


def test_of_an_argument_that_is_there_twice_the_last_one_counts(node: Node) -> None:
    # As with the kernel's own: those of a boot medium come behind the site's.
    (node.proc / "cmdline").write_text("ip=dhcp quiet ip=10.0.0.5:::24:::off x=* ck.linkwait=5 ck.linkwait=\n")
    assert node.out("karg ip") == "10.0.0.5:::24:::off\n"
    assert node.out("karg x") == "*\n"
    assert node.out("karg ck.linkwait") == ""


# --- IPv6


def test_a_card_that_led_nowhere_asks_for_a_router_again_when_it_is_tried_again(node: Node, tmp_path: Path) -> None:
    card = tmp_path / "net/eth0"
    (card / "device").mkdir(parents=True)
    for name, text in (("address", MAC.lower()), ("type", "1"), ("carrier", "1")):
        (card / name).write_text(text + "\n")
    switch = node.proc / "sys/net/ipv6/conf/eth0/disable_ipv6"
    switch.parent.mkdir(parents=True)
    switch.write_text("0\n")
    (node.site / "masters").write_text("http://[fd00::1]:8009 https://[fd00::1]:8010\n")
    # The kernel asks routers when IPv6 is switched on; after a mere flush it waits for the next announcement.
    script = f"""
FAKE=0; sleep() {{ FAKE=$((FAKE + $1 * 100)); }}; centiseconds() {{ echo $FAKE; }}
ip() {{
    case $* in
        'addr flush'*) echo "flushed $(cat {switch})" >>"$RUN/did" ;;
        '-6 -o addr'*) [ "$(cat {switch})" = 1 ] || echo '2: eth0    inet6 fd00::5/64 scope global dynamic ' ;;
    esac
}}
master_answers() {{ echo asked >>"$RUN/did"; : >"$RUN/curl.err"; [ "$(grep -c asked "$RUN/did")" -gt 1 ]; }}
network_up ''
"""
    node.out(script)
    assert (node.run / "did").read_text().splitlines() == ["asked", "flushed 1", "asked"]
    assert switch.read_text() == "0\n"
    assert (node.run / "lease").read_text() == "fd00::5\n"
