"""Reading images back: what the kernel unpacks is read, what it would refuse is refused, in bounded memory."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from initramfs_builder import cpio
from initramfs_builder.cpio import Entry, write_cpio
from initramfs_builder.errors import CapsulekitError, TrustError
from initramfs_builder.unpack import read_image, read_stream

ENTRIES = [
    cpio.directory("etc"),
    cpio.regular("etc/motd", b"hello\n", 0o600),
    cpio.symlink("motd", "etc/motd"),
    cpio.directory("dev"),
    cpio.char_device("dev/null", 1, 3, 0o666),
    cpio.regular("big", os.urandom(70_000) * 3),
]
TRAILER = b"TRAILER!!!\0"


def archive(entries: list[Entry] = ENTRIES) -> bytes:
    out = io.BytesIO()
    write_cpio(out, entries, 7)
    return out.getvalue()


def padded(data: bytes, to: int = 4) -> bytes:
    return data + bytes(-len(data) % to)


def zstd(data: bytes, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)


PACKERS = {"plain": lambda data: data, "zstd": zstd, "gzip": lambda data: gzip.compress(data, mtime=0), "xz": xz}


def read(data: bytes) -> list[tuple[str, int, bytes, str | None, str]]:
    """(path, mode, content, target, packed) of every entry."""
    return [(m.path, m.mode, m.read(), m.target, m.packed) for m in read_stream(io.BytesIO(data), "image")]


def paths(data: bytes) -> list[str]:
    return [member.path for member in read_stream(io.BytesIO(data), "image")]


@pytest.mark.parametrize("kind", PACKERS)
def test_an_archive_is_read_back_as_it_was_written(kind: str) -> None:
    found = read(PACKERS[kind](archive()))
    assert [one[0] for one in found] == [entry.path for entry in ENTRIES]
    assert [one[1] for one in found] == [entry.mode for entry in ENTRIES]
    assert [one[2] for one in found] == [entry.data or b"" for entry in ENTRIES]
    assert [one[3] for one in found] == [entry.target for entry in ENTRIES]
    assert {one[4] for one in found} == {kind}


@pytest.mark.parametrize("first", PACKERS)
@pytest.mark.parametrize("second", PACKERS)
def test_archives_follow_each_other_with_zeros_between(first: str, second: str) -> None:
    image = padded(PACKERS[first](archive()), 512) + PACKERS[second](archive([cpio.regular("last", b"x")])) + bytes(3)
    assert paths(image) == [*(entry.path for entry in ENTRIES), "last"]


def test_frames_may_be_cut_where_an_entry_ends() -> None:
    whole = archive()
    cuts = [at for at in range(1, len(whole)) if whole.startswith(b"070701", at)]
    for cut in cuts:  # only the last frame holds the trailer
        assert paths(padded(zstd(whole[:cut])) + zstd(whole[cut:])) == [entry.path for entry in ENTRIES]


def test_the_real_cpios_archive_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_bytes(b"content")
    (tmp_path / "a/two").hardlink_to(tmp_path / "a/one")
    made = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        input=b".\na\na/one\na/two\n",
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    members = {m.path: (m.links, m.inode, m.read()) for m in read_stream(io.BytesIO(made), "image")}
    assert set(members) == {"", "a", "a/one", "a/two"}
    assert members["a/one"][:2] == members["a/two"][:2]
    assert {members["a/one"][2], members["a/two"][2]} == {b"", b"content"}


def test_names_are_said_as_the_kernel_makes_them() -> None:
    data = archive([cpio.directory("xxx"), cpio.regular("xxx/yy", b"1")])
    assert paths(data.replace(b"xxx/yy", b"./x/yy").replace(b"xxx\0", b"./x\0")) == ["x", "x/yy"]
    assert paths(archive([cpio.regular(os.fsdecode(b"\xff"), b"1")])) == ["\udcff"]


def test_a_members_content_is_read_in_pieces_while_it_is_the_current_one() -> None:
    reader = read_stream(io.BytesIO(archive()), "image")
    motd = next(member for member in reader if member.path == "etc/motd")
    assert motd.read(2) == b"he"
    big = next(member for member in reader if member.path == "big")
    assert motd.read() == b""
    assert big.read(10) + b"".join(big.pieces()) == ENTRIES[-1].data
    assert big.read() == b""


# --- damage


def header(name: bytes, mode: int = 0o100644, size: int = 0, **fields: int) -> bytes:
    values = {"ino": 1, "mode": mode, "uid": 0, "gid": 0, "nlink": 1, "mtime": 0, "size": size, "maj": 0, "min": 0,
              "rmaj": 0, "rmin": 0, "name": len(name), "check": 0} | fields  # fmt: skip
    return padded(b"070701" + b"".join(b"%08X" % value for value in values.values()) + name)


DAMAGED = {
    "nothing": (b"", "holds no entry"),
    "only zeros": (bytes(512), "holds no entry"),
    "only a trailer": (header(TRAILER), "holds no entry"),
    "text": (b"hello world", "neither an archive nor a compressed stream"),
    "an archive at an odd place": (archive() + b"\0" + archive(), "neither an archive nor"),
    "old cpio": (b"070707" + bytes(200), "no newc header"),
    "crc cpio": (archive().replace(b"070701", b"070702"), "no newc header"),
    "letters in a header": (archive().replace(b"0000", b"00x0", 1), "not in hex digits"),
    "a sign in a header": (header(b"x\0").replace(b"00000001", b"+0000001", 1), "not in hex digits"),
    "no name": (header(b"\0"), "a name of 1 bytes"),
    "a long name": (header(b"x" * 5000 + b"\0"), "a name of 5001 bytes"),
    "a name without an end": (header(b"xx"), "does not end"),
    "a name with a NUL": (header(b"x\0x\0"), "does not end"),
    "a way out": (header(b"a/../../x\0"), "leads out"),
    "a mode of no type": (header(b"x\0", mode=0o644), "no file can have"),
    "a mode past all types": (header(b"x\0", mode=0o2100644), "no file can have"),
    "a folder with content": (header(b"x\0", mode=0o40755, size=4) + b"abcd", "is no file"),
    "a link without a target": (header(b"x\0", mode=0o120777), "a name of 0 bytes"),
    "a link with a long target": (header(b"x\0", mode=0o120777, size=5000) + bytes(5000), "a name of 5000 bytes"),
    "a link with a NUL": (header(b"x\0", mode=0o120777, size=4) + b"a\0b\0", "a NUL in it"),
    "content that is not there": (header(b"x\0", size=0xFFFFFFFF) + b"abc", "ends within an entry"),
    "a header cut short": (archive()[:60], "ends within an entry"),
    "rubbish in a stream": (zstd(archive() + b"rubbish"), "rubbish after an archive"),
    "an odd archive in a stream": (zstd(archive() + b"\0" + archive()), "rubbish after an archive"),
    "a stream that ends within an entry": (
        padded(zstd(archive()[:300])) + zstd(archive()[300:]),
        "ends within an entry",
    ),
    "zstd with a wrong checksum": (zstd(archive())[:-1] + b"?", "cannot be unpacked"),
    "zstd cut short": (zstd(archive())[:-200], "ends within an entry"),
    "gzip with a wrong checksum": (gzip.compress(archive())[:-8] + bytes(8), "cannot be unpacked"),
    "gzip cut short": (gzip.compress(archive())[:-100], "it is cut short"),
    "xz cut short": (xz(archive())[:-100], "it is cut short"),
    "xz with sums the kernel does not take": (lzma.compress(archive()), "checksums are not CRC32"),
    "bzip2": (b"BZh91AY&SY", "a stream of bzip2"),
    "lz4": (b"\x02\x21\x4c\x18aaaa", "a stream of lz4"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_the_kernel_would_not_unpack_is_refused_with_its_place(what: str) -> None:
    data, said = DAMAGED[what]
    with pytest.raises(TrustError, match=said) as error:
        read(data)
    assert "image" in error.value.message and error.value.exit_code == 3
    assert "\n" not in error.value.message


def test_a_zstd_window_past_what_the_kernel_takes_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(TrustError, match="window"):
        read(frame.compress(archive()) + frame.flush())


def test_an_image_cut_anywhere_is_refused_or_ends_between_entries() -> None:
    whole = archive(ENTRIES[:4])
    for end in range(1, len(whole) - 120):
        names = {entry.path for entry in ENTRIES}
        try:
            assert set(paths(whole[:end])) < names
        except TrustError:
            continue


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 3000), byte=st.integers(0, 255), kind=st.sampled_from(sorted(PACKERS)))
def test_a_changed_byte_is_read_or_refused_and_nothing_else(at: int, byte: int, kind: str) -> None:
    data = bytearray(PACKERS[kind](archive(ENTRIES[:5])))
    data[at % len(data)] = byte
    try:
        read(bytes(data))
    except CapsulekitError as error:
        assert "\n" not in error.message


BOMB = """
import resource, sys, zlib, lzma, zstandard
from pathlib import Path
from initramfs_builder.errors import TrustError
from initramfs_builder.unpack import read_image
zeros = bytes(1 << 20)
kind, path = sys.argv[1], Path(sys.argv[2])
head = b"070701" + b"".join(b"%08X" % n for n in (1, 0o100644, 0, 0, 1, 0, 0xFFFFFFF0, 0, 0, 0, 0, 2, 0)) + b"x\\0"
packer = {"zstd": lambda: zstandard.ZstdCompressor().compressobj(), "gzip": lambda: zlib.compressobj(wbits=31),
          "xz": lambda: lzma.LZMACompressor(check=lzma.CHECK_CRC32, preset=0)}[kind]()
with path.open("wb") as out:
    out.write(packer.compress(head))
    for _ in range(200):
        out.write(packer.compress(zeros))
    out.write(packer.flush())
del packer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for member in read_image(path):
        for piece in member.pieces():
            assert len(piece) <= 1 << 20
except TrustError as error:
    print("REFUSED", error.message)
print("GREW", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["zstd", "gzip", "xz"])
def test_a_few_bytes_that_unpack_to_much_cost_little_memory(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMB, kind, str(tmp_path / "bomb")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    refused, grew = done.stdout.splitlines()
    assert refused.startswith("REFUSED") and "ends within an entry" in refused
    assert int(grew.split()[1]) < 64  # MB; the entry says it has 4096


@pytest.mark.parametrize("limit", ["ENTRIES_MAX", "NAMES_MAX", "UNPACKED_MAX"])
def test_an_image_that_no_node_could_hold_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"initramfs_builder.unpack.{limit}", 4)
    with pytest.raises(TrustError, match="more than "):
        paths(archive())


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_image(tmp_path / "nothing"))


def test_the_trailer_ends_what_hard_links_share() -> None:
    twice = [
        header(b"one\0", size=4, nlink=2, ino=9) + b"aaaa" + header(TRAILER, mode=0),
        header(b"two\0", size=4, nlink=2, ino=9) + b"bbbb" + header(TRAILER, mode=0),
    ]
    members = list(read_stream(io.BytesIO(b"".join(twice)), "image"))
    assert members[0].inode != members[1].inode
