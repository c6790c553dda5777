"""What is known of an image's paths: as the kernel lays them out, with nothing that damaged files could break."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from image_of import image_of
from initramfs_builder import cpio, image
from initramfs_builder.cpio import Entry
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.image import collect
from initramfs_builder.kmodule import Kmodule, read_kmodule
from initramfs_builder.modindex import binary_index, read_values
from initramfs_builder.modulebytes import unpacked
from initramfs_builder.unpack import Member, read_stream
from small_image import LOADER, RELEASE, busybox, library, module, program


def member(path: str, data: bytes = b"", mode: int = 0o100644, links: int = 1, inode: int = 0) -> Member:
    """A member as the reader gives it."""
    out = io.BytesIO()
    entry = Entry("x", mode if stat.S_ISREG(mode) else 0o100644, data)
    cpio.write_cpio(out, [entry], 0)
    found = next(read_stream(io.BytesIO(out.getvalue()), "image"))
    found.path, found.mode, found.links, found.inode = path, mode, links, (0, 0, 0, inode)
    return found


FOLDER = 0o40755


def test_entries_below_a_link_to_a_folder_lie_in_that_folder() -> None:
    link = member("lib", mode=0o120777)
    link.target = "usr/lib"
    made = collect([member("usr", mode=FOLDER), member("usr/lib", mode=FOLDER), link, member("lib/x", b"1")], "image")
    assert set(made.facts) == {"usr", "usr/lib", "lib", "usr/lib/x"}
    assert made.file("lib/x") is made.file("/usr/lib/../lib/x") is made.facts["usr/lib/x"]


def test_an_entry_whose_folder_is_not_there_is_dropped_and_a_later_one_replaces_an_earlier() -> None:
    made = collect([member("a/b", b"1"), member("f", b"old"), member("f/x", b"1"), member("f", b"newer")], "image")
    assert made.dropped == ("a/b", "f/x")
    assert made.facts["f"].size == 5


def test_hard_links_share_the_content_that_comes_with_one_of_them() -> None:
    made = collect(
        [
            member("one", b"", links=3, inode=7),
            member("two", b"#!/bin/sh\n", links=3, inode=7),
            member("three", b"", links=3, inode=7),
        ],
        "image",
    )
    assert {fact.text for fact in made.facts.values()} == {"#!/bin/sh\n"}


def test_links_are_followed_inside_the_image_only_and_never_in_a_circle() -> None:
    made = image_of(
        [
            cpio.symlink("a", "b"), cpio.symlink("b", "a"), cpio.symlink("up", "../../../../etc"),
            cpio.symlink("dot", "."), cpio.directory("etc"), cpio.regular("etc/x", b"1"),
            cpio.symlink("deep", "etc/x/y"),
        ]
    )  # fmt: skip
    assert [made.resolve(path) for path in ("a", "nothing", "deep", "etc/x/z")] == [None] * 4
    assert [made.resolve(path) for path in ("up/x", "dot/dot/etc/x", "/", "..")] == ["etc/x", "etc/x", "", ""]
    assert made.fact("/") is not None and made.fact("/").is_folder  # type: ignore[union-attr]
    assert made.without(["etc"]).resolve("etc/x") is None


def test_what_programs_say_is_read() -> None:
    made = image_of(
        [
            cpio.regular("bin/busybox", busybox(), 0o755),
            cpio.regular("bin/tool", program("libone.so.1"), 0o755),
            cpio.regular("lib/ld-test.so.2", library("ld-test.so.2", source='char d[] = "\\0/lib/x/\\0/usr/lib/";')),
            cpio.regular("lib/firmware/x.bin", b"\x7fELF rubbish"),
        ]
    )
    tool = made.facts["bin/tool"].elf
    assert tool is not None and (tool.interpreter, tool.needed) == (LOADER, ("libone.so.1",))
    assert {"sh", "mount"} <= made.facts["bin/busybox"].words
    assert made.facts["lib/ld-test.so.2"].words == {"/lib/x/", "/usr/lib/"}
    assert made.facts["lib/ld-test.so.2"].elf.soname == "ld-test.so.2"  # type: ignore[union-attr]
    assert made.facts["lib/firmware/x.bin"] == image.Fact(0o100644, 12)  # firmware is for another processor


def test_large_files_are_not_taken_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "TEXT_MAX", 100)
    monkeypatch.setattr(image, "PROGRAM_MAX", 100)
    files = {"init": b"#!" + bytes(200), "etc/x": bytes(200), "p": b"\x7fELF" + bytes(200), "data": bytes(200)}
    files[f"lib/modules/{RELEASE}/x.ko"] = bytes(200)
    made = image_of(cpio.regular(path, data) for path, data in files.items())
    assert {path for path, fact in made.facts.items() if fact.broken} == set(files) - {"data"}
    assert all(fact.data is None for fact in made.facts.values())
    monkeypatch.setattr(image, "TEXT_MAX", 1000)
    monkeypatch.setattr(image, "TEXTS_MAX", 300)
    with pytest.raises(CapsulekitError, match="its scripts and tables are more than"):
        image_of(cpio.regular(path, data) for path, data in files.items())


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 1500), byte=st.integers(0, 255), more=st.binary(max_size=8))
def test_a_damaged_program_is_a_fact_and_never_a_failure(at: int, byte: int, more: bytes) -> None:
    data = bytearray(program("libone.so.1"))
    data[at] = byte
    data[at + 1 : at + 1 + len(more)] = more
    fact = image_of([cpio.regular("p", bytes(data))]).facts["p"]
    assert fact.broken is None or "damaged ELF" in fact.broken


# --- modules and their indexes

PACKERS = {
    "": bytes,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    ".gz": gzip.compress,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_a_module_says_what_it_needs_compressed_or_not(kind: str) -> None:
    data = module("my_net", "bus,other", "a.bin b*.bin", softdep="pre: x")
    found = read_kmodule(PACKERS[kind](data), f"kernel/my-net.ko{kind}")
    assert found == Kmodule("my_net", RELEASE, ("bus", "other"), ("a.bin", "b*.bin"), ("pre: x",))


@pytest.mark.parametrize("kind", [".zst", ".xz", ".gz"])
def test_a_damaged_module_is_refused_by_name(kind: str) -> None:
    data = PACKERS[kind](module("net"))
    for bad in (data[: len(data) // 2], b"", b"rubbish", data[:20] + bytes(20) + data[40:]):
        with pytest.raises(CapsulekitError, match=r"net\.ko") as error:
            read_kmodule(bad, f"net.ko{kind}")
        assert "\n" not in error.value.message


@pytest.mark.parametrize("kind", [".zst", ".xz", ".gz"])
def test_a_module_that_unpacks_to_too_much_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("initramfs_builder.modulebytes.UNPACKED_MAX", 1 << 20)
    with pytest.raises(CapsulekitError, match="it is more than 1 MiB"):
        unpacked(PACKERS[kind](bytes(4 << 20)), f"x.ko{kind}")


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 1200), byte=st.integers(0, 255))
def test_any_change_of_a_module_is_read_or_refused(at: int, byte: int) -> None:
    data = bytearray(module("net", "bus", "a.bin"))
    data[at % len(data)] = byte
    try:
        read_kmodule(bytes(data), "net.ko")
    except CapsulekitError as error:
        assert "net.ko" in error.message


TABLES = [
    {},
    {"net": [(0, "kernel/net.ko:")]},
    {"a": [(1, "x"), (2, "y")], "ab": [(0, "z")], "abc*": [(3, "")], "b": [(0, os.fsdecode(b"\xff"))]},
    {f"pci:v{n:08x}d*": [(n, "net")] for n in range(500)},
]


@pytest.mark.parametrize("table", TABLES)
def test_an_index_is_read_back_as_it_was_written(table: dict[str, list[tuple[int, str]]]) -> None:
    assert read_values(binary_index(table)) == table


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 200), more=st.binary(min_size=1, max_size=4))
def test_a_damaged_index_is_read_or_refused(at: int, more: bytes) -> None:
    data = bytearray(binary_index(TABLES[2]))
    data[at : at + len(more)] = more
    with contextlib.suppress(ValueError):
        read_values(bytes(data))


def test_an_index_that_leads_back_to_itself_ends() -> None:
    data = bytearray(binary_index({"a": [(0, "x")], "b": [(0, "y")]}))
    root = data[8:12]
    for at in range(12, len(data) - 3):
        again = bytes(data[:at]) + bytes(root) + bytes(data[at + 4 :])
        try:
            read_values(again)
        except ValueError as error:
            assert str(error)
