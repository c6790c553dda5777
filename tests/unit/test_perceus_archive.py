"""Perceus capsules from anywhere: what is read of them, and what must never happen while they are unpacked."""

from __future__ import annotations

import bz2
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from perceus_capsule import BESIDE, CONFIG, Member, beside, entry, everything, forged

from capsulekit.errors import CapsulekitError
from provisioner.vnfs.perceus import archive
from provisioner.vnfs.perceus.archive import is_perceus, read_archive
from provisioner.vnfs.perceus.config import read_config, read_hybridize, read_name

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files")
MB = 1_000_000
ROOTFS = entry("./rootfs", kind=tarfile.DIRTYPE)


def unpacked(tmp_path: Path, members: list[Member], limit: int = 50 * MB) -> archive.Contents:
    """Read a forged archive into tmp_path/box/root; what lies beside the root in the box must stay as it is."""
    box = tmp_path / "box"
    (box / "root").mkdir(parents=True)
    (box / "victim").write_text("safe")
    try:
        return read_archive(forged(tmp_path / "x.vnfs", members), box / "root", limit)
    finally:
        assert {p.name for p in box.iterdir()} == {"root", "victim"} and (box / "victim").read_text() == "safe"


def test_a_capsule_is_taken_apart(tmp_path: Path) -> None:
    members = [
        ROOTFS,
        entry("./rootfs/etc", kind=tarfile.DIRTYPE, mode=0o751, uid=5, mtime=1_200_000_000),
        entry("./rootfs/etc/motd", b"hello", mode=0o4755, uid=1000, gid=1001, mtime=1_100_000_000),
        entry("./rootfs/etc/link", kind=tarfile.SYMTYPE, linkname="/etc/motd"),
        entry("./rootfs/etc/again", kind=tarfile.LNKTYPE, linkname="./rootfs/etc/motd"),
        entry("./rootfs/pipe", kind=tarfile.FIFOTYPE),
        entry("./rootfs/dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("./rootfs/lib/udev/devices/sda", kind=tarfile.BLKTYPE, devmajor=8),
        *beside(),
        entry("./init/20-old.sh", b"#!/bin/sh\n"),
        entry("./what", b"?"),
    ]
    found = unpacked(tmp_path, members)
    root = tmp_path / "box/root"
    info = (root / "etc/motd").stat()
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_mtime) == (0o4755, 1000, 1001, 1_100_000_000)
    assert (root / "etc/again").stat().st_ino == info.st_ino and str((root / "etc/link").readlink()) == "/etc/motd"
    folder = (root / "etc").stat()
    assert (folder.st_mode & 0o7777, folder.st_uid, folder.st_mtime) == (0o751, 5, 1_200_000_000)
    assert (root / "pipe").is_fifo() and not list(root.glob("dev/*")) and not list(root.glob("lib/udev/devices/*"))
    assert found.config == CONFIG.replace("{release}", "6.1.0-test").encode()
    assert (found.hybridize, found.livesync_skip) == (BESIDE["hybridize"], BESIDE["livesync.skip"])
    assert [script.member for script in found.scripts] == ["provision/init/20-old.sh", "provision/init/50-local.sh"]
    assert sorted(found.programs) == ["close", "configure", "livesync", "mount", "umount"]
    left = "\n".join(found.left_out)
    assert "10-vnfsinit.sh (Perceus's own boot)" in left and "'what' (unknown)" in left
    assert "1 device nodes outside of /dev, such as 'lib/udev/devices/sda'" in left


HOSTILE: dict[str, tuple[list[Member], str]] = {
    "absolute": ([entry("/rootfs/etc/x")], "is absolute"),
    "up": ([entry("./rootfs/../../victim", b"x")], "has '..'"),
    "up before": ([entry("../victim", b"x")], "has '..'"),
    "through a link": (
        [ROOTFS, entry("rootfs/a", kind=tarfile.SYMTYPE, linkname=".."), entry("rootfs/a/victim", b"x")],
        "through a link",
    ),
    "over a link": (
        [ROOTFS, entry("rootfs/a", kind=tarfile.SYMTYPE, linkname="../victim"), entry("rootfs/a", b"x")], "twice",
    ),
    "folder over a link": (
        [entry("rootfs/a", kind=tarfile.SYMTYPE, linkname=".."), entry("rootfs/a", kind=tarfile.DIRTYPE)], "twice",
    ),
    "root is a link": ([entry("rootfs", kind=tarfile.SYMTYPE, linkname="..")], "twice"),
    "link out": ([entry("rootfs/a", kind=tarfile.LNKTYPE, linkname="/etc/passwd")], "hard link in it leads out"),
    "link up": ([entry("rootfs/a", kind=tarfile.LNKTYPE, linkname="rootfs/../victim")], "hard link in it leads out"),
    "link beside": ([entry("rootfs/a", kind=tarfile.LNKTYPE, linkname="config")], "hard link in it leads out"),
    "link through": (
        [entry("rootfs/a", kind=tarfile.SYMTYPE, linkname=".."),
         entry("rootfs/b", kind=tarfile.LNKTYPE, linkname="rootfs/a/victim")],
        "through a link",
    ),
    "link to nothing": ([entry("rootfs/a", kind=tarfile.LNKTYPE, linkname="rootfs/b")], "leads to nothing"),
    "link to a folder": ([ROOTFS, entry("rootfs/d", kind=tarfile.DIRTYPE),
                          entry("rootfs/a", kind=tarfile.LNKTYPE, linkname="rootfs/d")], "leads to nothing"),
    "under a file": ([entry("rootfs/a", b"x"), entry("rootfs/a/b", b"x")], "through a link or a file"),
    "twice": ([entry("rootfs/a", b"x"), entry("rootfs/a", b"y")], "twice"),
    "no root": ([entry("config", b"")], "holds no rootfs/"),
    "config is a link": ([ROOTFS, entry("config", kind=tarfile.SYMTYPE, linkname="/etc/shadow")], "it is no file"),
    "huge config": ([ROOTFS, entry("config", bytes(2 << 20))], "at most"),
    "huge script": ([ROOTFS, entry("nodescripts/init/20-x", bytes(2 << 20))], "at most"),
    "same script": ([ROOTFS, entry("init/20-x"), entry("nodescripts/init/20-x")], "twice"),
    "long name": ([entry("rootfs/" + "x" * 300, b"")], "File name too long"),
    "impossible owner": ([entry("rootfs/a", b"", uid=1 << 40)], "impossible owner"),
    "bomb": ([ROOTFS, entry("rootfs/zeros", bytes(60 * MB))], "unpacks to more than 50 MB"),
}  # fmt: skip


@pytest.mark.parametrize("style", ["gnu", "posix"])
def test_a_file_with_holes_counts_with_them(tmp_path: Path, style: str) -> None:
    """A kilobyte of archive could fill any disk."""
    (tmp_path / "s/rootfs").mkdir(parents=True)
    with (tmp_path / "s/rootfs/holes").open("wb") as file:
        file.truncate(60 * MB)
    argv = ["tar", "-S", f"--format={style}", "-cjf", tmp_path / "x.vnfs", "-C", tmp_path / "s", "rootfs"]
    subprocess.run(argv, check=True)
    (tmp_path / "root").mkdir()
    for into in (None, tmp_path / "root"):
        with pytest.raises(CapsulekitError, match="unpacks to more than 50 MB"):
            read_archive(tmp_path / "x.vnfs", into, 50 * MB)
    assert not list((tmp_path / "root").iterdir())


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line_and_touches_nothing(tmp_path: Path, case: str) -> None:
    members, told = HOSTILE[case]
    with pytest.raises(CapsulekitError) as caught:
        unpacked(tmp_path, members)
    assert told in caught.value.message and str(tmp_path / "x.vnfs") in caught.value.message
    assert "\n" not in caught.value.message and caught.value.message.isprintable()


def test_headers_are_bounded_before_they_are_in_memory(tmp_path: Path) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 40 * MB
    with pytest.raises(CapsulekitError, match="a header in it is longer"):
        unpacked(tmp_path, [(long, bytes(40 * MB))])


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    members = [entry("././@PaxHeader", b"11 path=ab\n", kind=tarfile.XHDTYPE)] * 3000
    with pytest.raises(CapsulekitError, match=r"damaged|a header in it is longer"):
        unpacked(tmp_path, members)


def test_a_truncated_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = forged(tmp_path / "x.vnfs", [ROOTFS, *beside(), entry("rootfs/a", os.urandom(300_000))]).read_bytes()
    (tmp_path / "root").mkdir()
    wrong = [
        whole[: len(whole) // 2],
        whole[:-3],
        b"BZh9",
        whole[:4000] + b"\0" * 50 + whole[4050:],
        b"BZh91AY&SY" + b"x" * 99,
    ]
    wrong += [bz2.compress(b"no tar" * 1000), bz2.compress(b"")]
    for number, data in enumerate(wrong):
        path = tmp_path / f"{number}.vnfs"
        path.write_bytes(data)
        with pytest.raises(CapsulekitError):
            read_archive(path, None, 50 * MB)


def test_a_tar_that_ends_in_the_middle_is_refused_although_its_bzip2_is_whole(tmp_path: Path) -> None:
    members = [ROOTFS, *beside(), entry("rootfs/a", b"x" * 5000), entry("rootfs/b", b"x")]
    plain = bz2.decompress(forged(tmp_path / "x.vnfs", members).read_bytes())
    at = plain.index(b"rootfs/b\0")
    for number, data in enumerate((plain[:at], plain[: at - 3000], plain[:at] + b"damaged" + plain[at + 7 :])):
        path = tmp_path / f"{number}.vnfs"
        path.write_bytes(bz2.compress(data))
        with pytest.raises(CapsulekitError, match=r"damaged|truncated"):
            read_archive(path, None, 50 * MB)


def test_looking_writes_nothing(tmp_path: Path) -> None:
    path = forged(tmp_path / "x.vnfs", [ROOTFS, *beside()])
    before = everything(tmp_path)
    assert read_archive(path, None, MB).scripts
    assert everything(tmp_path) == before


def test_what_is_no_bzip2_is_none_of_perceus(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"BZ")
    os.mkfifo(tmp_path / "pipe")
    assert [is_perceus(tmp_path / name) for name in ("x", "no", "pipe", ".")] == [False] * 4


@pytest.mark.parametrize(
    ("text", "kernel", "args", "unread"),
    [
        (CONFIG.replace("{release}", "6.1"), "6.1", "ramdisk_blocksize=1024 console=ttyS0", 0),
        ("KERNEL_ARGS='a b' # why\n", None, "a b", 0),
        ("export KERNEL=vmlinuz-1\nKERNEL=/boot/vmlinuz-2\n", "2", "", 0),
        ("KERNEL=/boot/bzImage\n", None, "", 0),
        ('KERNEL_ARGS="$(rm -rf /)"\n', None, "", 1),
        ("KERNEL_ARGS=`id`\nKERNEL=/boot/vmlinuz-$(uname -r)\n", None, "", 2),
        ("KERNEL_ARGS=a touch /tmp/x\n", None, "", 1),
        ('KERNEL_ARGS="open\n', None, "", 1),
        ("KERNEL_ARGS='a\x1b[1m'\n", None, "", 1),
        ("KERNEL_ARGS=`id`\nKERNEL_ARGS=quiet\n", None, "quiet", 0),
        ("\xff\xfe", None, "", 0),
    ],
)
def test_config_is_read_as_text_and_never_run(text: str, kernel: str | None, args: str, unread: int) -> None:
    got = read_config(text.encode("latin-1"))
    assert (got.kernel, got.kernel_args, len(got.unread)) == (kernel, args, unread)
    assert all(line.isprintable() for line in got.unread)


def test_the_hybridize_list_keeps_its_full_paths() -> None:
    assert read_hybridize(BESIDE["hybridize"]) == (("/usr/share", "/usr/X11R6", "/usr/lib/locale"), ("'usr/src'",))
    assert read_hybridize(b"/a/../b\n/\n/x\x1b\n/y\n/y\n")[0] == ("/y",)


@pytest.mark.parametrize(
    ("file", "name", "version"),
    [
        ("centos-5.1-1.stateless.x86_64.vnfs", "centos-5.1", "1"),
        ("caos-nsa-node-0.9g-1.stateful.i386.vnfs", "caos-nsa-node-0.9g", "1"),
        ("my node.vnfs", "my-node", "1"),
        ("node", "node", "1"),
        ("rhel-6.vnfs", "rhel", "6"),
    ],
)
def test_the_files_name_gives_name_and_version(file: str, name: str, version: str) -> None:
    assert read_name(file) == (name, version)


def test_a_file_without_a_name_is_refused() -> None:
    with pytest.raises(CapsulekitError, match="gives no name"):
        read_name("---.vnfs")
