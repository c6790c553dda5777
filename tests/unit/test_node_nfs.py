"""Transfer method nfs in stage 1: one more place to look, never believed, and never in the boot's way."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounted_layer import DATA, DIGEST, NAME, NO_NET, SLEEPLESS, console, from_net, plan_one, take
from node_shell import Node, a_plan, check, node

__all__ = ["node"]  # the fixture
GOOD = ["10.0.0.1:/blobs", "10.0.0.5:/vol/perceus/nfs/blobs", "[fd00:1::1]:/blobs", "10.0.0.1:/a_b-c.d/+@"]
BAD = ["", "10.0.0.1", "10.0.0.1:", "10.0.0.1:/", "10.0.0.1:blobs", "master:/blobs", "10.0.0.256:/blobs", "10.0.0:/b",
       "fd00::1:/blobs", "[fd00::1:/blobs", "[10.0.0.1]x:/blobs", "10.0.0.1:/a/../b", "10.0.0.1:/a//b", "10.0.0.1:/a/",
       "10.0.0.1:/a b", "10.0.0.1:/a;b", "10.0.0.1:/$(x)", "10.0.0.1:/a'b", "10.0.0.1:/a,rw", "10.0.0.1:/a\\b",
       "-o:/blobs", "10.0.0.1:/a:/b", "10.0.0.1:/*"]  # fmt: skip


@pytest.fixture
def offered(node: Node) -> Path:
    """An export that is mounted, as far as /proc/mounts says."""
    folder = node.run.parent / "offered"
    folder.mkdir()
    plan_one(node, f"10.0.0.1:/blobs {folder} nfs4 ro 0 0\n")
    return folder


# --- the plan's line


@pytest.mark.parametrize("export", GOOD)
def test_a_plan_may_name_an_export(node: Node, export: str) -> None:
    assert check(node, a_plan(extra=f"nfs {export}")) == ""


@pytest.mark.parametrize("export", BAD)
def test_an_export_that_is_none_is_refused(node: Node, export: str) -> None:
    assert "is not understood: nfs" in check(node, a_plan(extra=f"nfs {export}".rstrip()))


def test_only_one_export_is_named(node: Node) -> None:
    assert check(node, a_plan(extra=f"nfs {GOOD[0]}\nnfs {GOOD[1]}")) == "plan: nfs is named twice"


# --- mounting


def opened(node: Node, mount: str, export: str = GOOD[0]) -> str:
    (node.run / "plan").write_text(a_plan(extra=f"nfs {export}" if export else None))
    node.out(f"MODPROBE=true; {mount}; nfs_open")
    return (node.run / "detail").read_text().strip()


def test_without_a_word_of_it_nothing_is_mounted(node: Node) -> None:
    assert opened(node, "mount() { exit 9; }", "") == "the files come by http"


@pytest.mark.parametrize(("export", "address"), [(GOOD[0], "10.0.0.1"), (GOOD[2], "fd00:1::1")])
def test_it_is_mounted_read_only_and_never_waited_for_without_end(node: Node, export: str, address: str) -> None:
    mount = f'mount() {{ echo "$*" >"{node.run}/words"; }}'
    assert opened(node, mount, export) == export
    _, kind, _, options, what, where = (node.run / "words").read_text().split()
    assert (kind, what, where) == ("nfs4", export, f"{node.run.parent}/offered")
    words = options.split(",")
    assert {"ro", "soft", "vers=4.1", "nosuid", "nodev", "noexec", f"addr={address}"} <= set(words)


def test_a_server_that_is_away_is_said_and_stops_no_boot(node: Node) -> None:
    mount = "mount() { echo 'mount: mounting 10.0.0.1:/blobs on /run/nfs failed: Connection refused' >&2; return 255; }"
    assert opened(node, mount) == "10.0.0.1:/blobs: Connection refused; the files come by http"
    assert "nfs: 10.0.0.1:/blobs: Connection refused; the files come by http" in console(node)


# --- taking


def test_a_file_is_copied_from_there_and_counted(node: Node, offered: Path) -> None:
    (offered / DIGEST).write_bytes(DATA)
    take(node, NO_NET)
    assert node.out("nfs_count") == ", 1 by nfs\n"
    assert console(node) == ""


def test_nothing_of_it_is_counted_where_all_came_by_http(node: Node, offered: Path) -> None:
    (node.proc / "mounts").write_text("")
    (offered / DIGEST).write_bytes(DATA)
    take(node, from_net(node))
    assert node.out("nfs_count") == "" and console(node) == ""


def test_what_is_not_there_comes_by_http(node: Node, offered: Path) -> None:
    take(node, from_net(node))
    assert f"{NAME}: is not on the NFS server; it comes by http" in console(node)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (DATA[:-1] + b"?", "has other bytes there than its digest says"),
        (b"", "has 0 bytes there, not 5000"),
        (DATA[:100], "has 100 bytes there, not 5000"),
        (DATA * 2, "has 10000 bytes there, not 5000"),
    ],
)
def test_what_is_wrong_there_is_never_used(node: Node, offered: Path, wrong: bytes, said: str) -> None:
    (offered / DIGEST).write_bytes(wrong)
    take(node, from_net(node))
    assert f"{NAME}: {said} (NFS); it comes by http" in console(node)
    assert node.out("nfs_count") == ""


def test_no_more_is_read_than_the_plan_says_however_long_the_file_has_become(node: Node, offered: Path) -> None:
    (offered / DIGEST).write_bytes(bytes(9 << 20))
    lies = f'file_size() {{ case $1 in {offered}/*) echo {len(DATA)} ;; *) stat -c %s "$1" ;; esac; }}; '
    counted = 'dd() { command dd "$@"; stat -c %s "$RUN/f" >>"$RUN/sizes"; }; '
    take(node, lies + counted + from_net(node))
    assert int((node.run / "sizes").read_text().split()[0]) <= 3 + (1 << 20)
    assert "has other bytes there than its digest says" in console(node)


def test_a_server_that_goes_away_while_it_is_read_is_left(node: Node, offered: Path) -> None:
    (offered / DIGEST).write_bytes(DATA)
    gone = (
        'dd() { case "$*" in *skip=*) command dd "$@" ;; '
        "*) head -c 70 /dev/zero; echo 'dd: reading: Input/output error' >&2; return 1 ;; esac; }; "
    )
    take(node, gone + from_net(node))
    assert "cannot be read there: Input/output error (NFS); it comes by http" in console(node)


def test_what_an_earlier_attempt_had_is_no_hindrance(node: Node, offered: Path) -> None:
    (offered / DIGEST).write_bytes(DATA)
    node.out(f'{NO_NET}printf abcpart >"$RUN/f"; take "$RUN/f" {NAME} {DIGEST} {len(DATA)} public 3')
    assert (node.run / "f").read_bytes() == b"abc" + DATA


@pytest.mark.parametrize("kind", ["private", "script"])
def test_private_files_and_scripts_are_never_looked_for_there(node: Node, offered: Path, kind: str) -> None:
    (offered / DIGEST).write_bytes(DATA)
    assert "refused" in node.reason(f'{SLEEPLESS}{NO_NET}: >"$RUN/g"; take "$RUN/g" {NAME} {DIGEST} 5000 {kind} 0')


def test_a_disk_is_asked_first_and_keeps_what_came_from_there(node: Node, offered: Path) -> None:
    blobs = node.run.parent / "disk/capsulekit/blobs"
    blobs.mkdir(parents=True)
    with (node.proc / "mounts").open("a") as mounts:
        mounts.write(f"/dev/vda1 {node.run.parent}/disk ext4 rw 0 0\n")
    (offered / DIGEST).write_bytes(DATA)
    take(node, NO_NET)
    assert (blobs / DIGEST).read_bytes() == DATA
    (offered / DIGEST).unlink()
    take(node, NO_NET)
    assert console(node) == ""


def test_it_is_unmounted_before_the_jump(node: Node, offered: Path) -> None:
    done = node.out('umount() { echo "umount $*"; }; nfs_close')
    assert done == f"umount {offered}\n"
