"""Images and files made to harm who checks them: an error that says why, soon, and in little memory."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable

import pytest
import zstandard
from image_of import files_image, image_of, packed
from initramfs_builder import cpio, elffile, image, unpack
from initramfs_builder.applets import applet_names
from initramfs_builder.check.closure import check_facts
from initramfs_builder.check.scripts import check_scripts
from initramfs_builder.cpio import Entry
from initramfs_builder.elf import parse_elf
from initramfs_builder.errors import CapsulekitError, TrustError
from initramfs_builder.kmodule import read_kmodule
from initramfs_builder.modindex import HAS_CHILDREN, HAS_PREFIX, KEY_MAX, MAGIC, VERSION, read_values
from initramfs_builder.modulefile import parse_modinfo
from initramfs_builder.unpack import read_stream
from small_image import compiled, entries, library, module, program

# --- programs


def noted(told: str) -> bytes:
    """A library with a dlopen note that holds this text."""
    text = told.replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        '.section .note.dlopen,"a",@note', ".balign 4", f".long 4, {len(told) + 1}, 0x407c0c0a", '.asciz "FDO"',
        f'.asciz "{text}"', ".balign 4",
    ]  # fmt: skip
    return compiled("\n".join((*lines, "")), "-shared", kind="assembler")


NOTES = [
    "[1]", '"text"', "5", '{"soname": ["a"]}', "[" * 5000, "[{}]", '[{"soname": "libone.so"}]', '[{"soname": [1]}]',
    '[{"soname": []}]', '[{"soname": [""]}]', "[",
]  # fmt: skip


@pytest.mark.parametrize("told", NOTES, ids=range(len(NOTES)))
def test_a_dlopen_note_that_is_none_makes_the_file_a_damaged_one(told: str) -> None:
    with pytest.raises(CapsulekitError, match="x is a damaged ELF file"):
        parse_elf(io.BytesIO(noted(told)), "x")
    known = entries() | {"usr/lib/x.so": cpio.regular("usr/lib/x.so", noted(told))}
    (problem,) = check_facts(image_of(known.values()))
    assert problem.text.startswith("usr/lib/x.so: usr/lib/x.so is a damaged ELF file: ")


def test_a_dlopen_note_as_it_should_be_is_read() -> None:
    told = json.dumps([{"soname": ["liba.so.2", "liba.so.1"], "priority": "required"}, {"soname": ["libb.so"]}])
    found = parse_elf(io.BytesIO(noted(told)), "x")
    assert found is not None
    assert [(wish.sonames, wish.required) for wish in found.dlopen] == [
        (("liba.so.2", "liba.so.1"), True), (("libb.so",), False)
    ]  # fmt: skip


def test_names_and_parts_of_a_program_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a name lies outside"):
        elffile.name_at(b"x" * 100_000 + b"\0", 0)
    assert elffile.name_at(b"x" * 4095 + b"\0", 0) == "x" * 4095
    data = program("libone.so.1")
    monkeypatch.setattr(elffile, "DYNAMIC_MAX", 32)
    with pytest.raises(CapsulekitError, match="its dynamic section has"):
        parse_elf(io.BytesIO(data), "x")
    monkeypatch.undo()
    monkeypatch.setattr(elffile, "PART_MAX", 800)  # each of its parts is smaller, all of them together are not
    with pytest.raises(CapsulekitError, match="it says that a part of"):
        parse_elf(io.BytesIO(data), "x")


def test_what_all_programs_and_modules_say_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [cpio.regular(f"usr/lib/{n}.so", library("libone.so.1", "libtwo.so.2")) for n in range(40)]
    monkeypatch.setattr(image, "TEXTS_MAX", 2000)
    with pytest.raises(CapsulekitError, match="its scripts and tables are more than"):
        image_of(many)
    files = [cpio.regular(f"lib/modules/6/{n}.ko", module("net", firmware="a b c")) for n in range(20)]
    with pytest.raises(CapsulekitError, match="its scripts and tables are more than"):
        image_of(files)


def test_only_the_row_of_applets_in_a_busybox_counts() -> None:
    data = b"\0vi\0\x01openssl\0zz\0[\0[[\0ash\0cat\0sh\0vi\0\x7f\0bash\0cat\0"
    assert applet_names(data) == {"[", "[[", "ash", "cat", "sh", "vi"}
    assert applet_names(b"") == frozenset()


# --- modules


@pytest.mark.parametrize("cut", [1, 5000, 40_000])
def test_a_compressed_module_that_is_cut_short_is_damaged_also_behind_its_sections(cut: int) -> None:
    signature = b"".join(struct.pack("<I", zlib.crc32(bytes([n % 256, n // 256]))) for n in range(20_000))
    whole = zstandard.ZstdCompressor().compress(module("net") + signature)
    assert read_kmodule(whole, "net.ko.zst").name == "net"
    with pytest.raises(CapsulekitError, match=r"net\.ko\.zst cannot be unpacked"):
        read_kmodule(whole[:-cut], "net.ko.zst")


def test_what_a_module_says_of_itself_is_bounded() -> None:
    data = compiled('.section .modinfo,"a"\n.fill 2000000, 1, 97\n', "-c", kind="assembler")
    with pytest.raises(CapsulekitError, match=r"its \.modinfo has 2000000 bytes"):
        parse_modinfo(data, "x.ko")


def index(*nodes: bytes, parts: int) -> bytes:
    """An index whose root lies behind the header and has these parts."""
    return struct.pack(">III", MAGIC, VERSION, 12 | parts) + b"".join(nodes)


LOOPS = {
    "of a long prefix": index(
        b"p" * 2000 + b"\0" + bytes([0, 0]) + struct.pack(">I", 12 | HAS_PREFIX | HAS_CHILDREN),
        bytes(1 << 20), parts=HAS_PREFIX | HAS_CHILDREN,
    ),
    "of one child": index(bytes([0, 0]) + struct.pack(">I", 12 | HAS_CHILDREN), bytes(1 << 20), parts=HAS_CHILDREN),
    "of many": index(
        bytes([0, 255]) + struct.pack(">I", 12 | HAS_CHILDREN) * 256, bytes(1 << 22), parts=HAS_CHILDREN
    ),
    "of one long key": index(b"p" * 2 * KEY_MAX + b"\0", parts=HAS_PREFIX),
}  # fmt: skip


@pytest.mark.parametrize("data", LOOPS.values(), ids=LOOPS)
def test_an_index_of_modules_never_grows_beyond_its_file(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"loop|key|not found"):
        read_values(data)


# --- scripts

DEEP: dict[str, str] = {
    "expansions": "x=" + "${a-" * 3000 + "}" * 3000,
    "arithmetic": "x=" + "$((" * 3000 + "1" + "))" * 3000,
    "elif": "if a; then b\n" + "elif a; then b\n" * 3000 + "fi",
    "length": "cd\n" * 200_000,
}


@pytest.mark.parametrize("what", DEEP)
def test_a_script_beyond_measure_is_a_problem_and_no_more(what: str) -> None:
    known = files_image({"init": f"#!/bin/sh\n{DEEP[what]}\n", "bin/sh": "\x7f"})
    (problem,) = check_scripts(known)
    assert problem.text in ("init: init: too much within each other", "init: init: more than 256 KiB")


# --- archives


def test_zeros_in_a_stream_are_counted_like_all_that_it_unpacks_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "UNPACKED_MAX", 8 << 20)
    small = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(TrustError, match=r"more than .* entries"):
        list(read_stream(io.BytesIO(small), "image"))
    assert len(list(read_stream(io.BytesIO(ONE + bytes(8 << 20) + ONE), "image"))) == 2  # between archives they cost


ONE = packed([Entry("a", 0o100644, b"1")])
HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "a comment": lambda data: data[:3] + b"\x10" + data[4:10] + b"text\0" + data[10:],
    "more fields": lambda data: data[:3] + b"\x04" + data[4:10] + b"\2\0ab" + data[10:],
    "a sum": lambda data: data[:3] + b"\x02" + data[4:10]
    + struct.pack("<H", zlib.crc32(data[:3] + b"\x02" + data[4:10]) & 0xFFFF) + data[10:],
}  # fmt: skip


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_gzip_header_that_the_kernel_would_not_skip_is_refused(change: Callable[[bytes], bytes]) -> None:
    plain = gzip.compress(ONE, mtime=0)
    changed = change(plain)
    assert gzip.decompress(changed) == ONE
    with pytest.raises(TrustError, match="its header has fields that the kernel does not skip"):
        list(read_stream(io.BytesIO(changed), "image"))
    named = plain[:3] + b"\x08" + plain[4:10] + b"name\0" + plain[10:]
    assert [member.path for member in read_stream(io.BytesIO(named), "image")] == ["a"]
