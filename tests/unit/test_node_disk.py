"""The local disk that keeps layers between boots: only by its label, only public files, never believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounted_layer import DATA, DIGEST, NAME, NO_NET, SLEEPLESS, console, from_net, plan_one, take
from node_shell import Node, node

__all__ = ["node"]  # the fixture


@pytest.fixture
def blobs(node: Node) -> Path:
    """A disk that is mounted, as far as /proc/mounts says."""
    folder = node.run.parent / "disk/capsulekit/blobs"
    folder.mkdir(parents=True)
    plan_one(node, f"/dev/vda1 {node.run.parent}/disk ext4 rw 0 0\n")
    (node.site / "masters").write_text("http://a https://a\n")
    return folder


def test_what_was_fetched_is_kept_and_used_by_the_next_boot(node: Node, blobs: Path) -> None:
    take(node, from_net(node))
    assert (blobs / DIGEST).read_bytes() == DATA
    assert [p.name for p in blobs.iterdir()] == [DIGEST]
    take(node, NO_NET)


def test_private_files_are_neither_kept_nor_looked_for(node: Node, blobs: Path) -> None:
    take(node, from_net(node), "private")
    assert list(blobs.iterdir()) == []
    (blobs / DIGEST).write_bytes(DATA)
    assert "refused" in node.reason(f'{SLEEPLESS}{NO_NET}: >"$RUN/g"; take "$RUN/g" {NAME} {DIGEST} 5000 private 0')


@pytest.mark.parametrize("damaged", [DATA[:-1] + b"?", b"", DATA[:100], DATA + b"more"])
def test_a_damaged_copy_is_not_used(node: Node, blobs: Path, damaged: bytes) -> None:
    (blobs / DIGEST).write_bytes(damaged)
    take(node, from_net(node))
    assert (blobs / DIGEST).read_bytes() == DATA
    assert ("damaged" in console(node)) == (len(damaged) == len(DATA))


def test_a_full_disk_loses_what_no_plan_names_and_stops_no_boot(node: Node, blobs: Path) -> None:
    (blobs / ("0" * 64)).write_bytes(b"old")
    take(
        node,
        from_net(node) + 'disk_free() { [ ! -e "$BLOBS/$OLD" ] && echo 9999999 || echo 0; }; OLD=' + "0" * 64 + "; ",
    )
    assert [p.name for p in blobs.iterdir()] == [DIGEST]
    (blobs / DIGEST).unlink()
    take(node, from_net(node) + "disk_free() { echo 0; }; ")
    assert list(blobs.iterdir()) == []
    assert f"{NAME}: no room for it on the local disk (2 MB)" in console(node)


def test_a_disk_that_fails_while_it_is_written_stops_no_boot(node: Node, blobs: Path) -> None:
    take(node, from_net(node) + 'sync() { echo "I/O error" >&2; return 1; }; ')
    assert list(blobs.iterdir()) == []
    assert "not kept on the local disk: I/O error" in console(node)


def test_without_the_mount_nothing_is_written(node: Node, blobs: Path) -> None:
    (node.proc / "mounts").write_text("")
    take(node, from_net(node))
    assert list(blobs.iterdir()) == []


OPEN = 'MODPROBE=true; {find} {mount} disk_open; cat "$RUN/detail"'


def test_the_disk_is_found_by_its_label_alone(node: Node, tmp_path: Path) -> None:
    none = OPEN.format(find='findfs() { echo "$1" >"$RUN/asked"; return 1; };', mount="mount() { exit 9; };")
    assert node.out(none) == "no disk is labelled CAPSULEKIT\n"
    assert (node.run / "asked").read_text() == "LABEL=CAPSULEKIT\n"
    find = "findfs() { echo /dev/vda1; };"
    done = node.out(OPEN.format(find=find, mount='mount() { echo "$*" >"$RUN/mounted"; };'))
    assert done.startswith("/dev/vda1, ") and done.endswith(" MB free\n")
    assert (node.run / "mounted").read_text() == f"-o nosuid,nodev,noexec,noatime /dev/vda1 {tmp_path}/disk\n"
    left = tmp_path / "disk/capsulekit/blobs/x.new"
    left.touch()
    node.out(OPEN.format(find=find, mount="mount() { :; };"))
    assert not left.exists()
    bad = OPEN.format(find=find, mount="umount() { :; }; mount() { echo 'mount: bad superblock' >&2; return 32; };")
    assert node.out(bad) == "/dev/vda1 is not used: mount: bad superblock\n"
