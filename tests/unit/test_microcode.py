"""Microcode in front of an image: which, in which form, and where it must lie."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from initramfs_builder import cpio, microcode
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.microcode import AMD, INTEL, early_entries
from initramfs_builder.patterns import Patterns
from initramfs_builder.tree import Tree

ALL = Patterns(["amd-ucode/*", "intel-ucode/*"])


def update(processor: int, content: bytes = b"code" * 16, size: int | None = None) -> bytes:
    """An update as Intel's manual says: the words of all of it add up to 0."""
    whole = 48 + len(content) if size is None else size
    head = struct.pack("<9I12x", 1, 7, 0x01012025, processor, 0, 1, 1, len(content) if size is None else 0, whole)
    body = (head + content).ljust(whole or microcode.INTEL_OLD_SIZE, b"\0")
    rest = -sum(struct.unpack(f"<{len(body) // 4}I", body)) & 0xFFFFFFFF
    return body[:16] + struct.pack("<I", rest) + body[20:]


def tree(tmp_path: Path, files: dict[str, bytes], name: str = "tree") -> Tree:
    for path, data in files.items():
        file = tmp_path / name / "lib/firmware" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (tmp_path / name).mkdir(exist_ok=True)
    return Tree(tmp_path / name)


def contents(found: tuple[cpio.Entry, ...]) -> dict[str, bytes]:
    return {entry.path: entry.data for entry in found if isinstance(entry.data, bytes)}


def test_each_maker_has_one_file_under_the_name_the_kernel_knows(tmp_path: Path) -> None:
    one, other = update(0x50654), update(0x606A6)
    files = {
        "amd-ucode/microcode_amd.bin": b"DMA\0first",
        "amd-ucode/microcode_amd_fam17h.bin": b"DMA\0second",
        "amd-ucode/microcode_amd.bin.asc": b"a signature",
        "intel-ucode/06-55-04": one,
        "intel-ucode/06-6a-06": other + one,
    }
    found = contents(early_entries([tree(tmp_path, files)], ALL))
    assert found[AMD] == b"DMA\0firstDMA\0second"
    assert found[INTEL] == one + other, "an update that two files hold is there once"


@pytest.mark.parametrize("size", range(0, 20, 4))
def test_intels_updates_lie_at_a_multiple_of_sixteen_bytes(tmp_path: Path, size: int) -> None:
    files = {"amd-ucode/a.bin": b"DMA\0" + bytes(size), "intel-ucode/06-55-04": update(1)}
    out = bytearray()

    class Out:
        def write(self, data: bytes, /) -> None:
            out.extend(data)

    cpio.write_cpio(Out(), cpio.with_parents(early_entries([tree(tmp_path, files)], ALL)), 0)
    assert bytes(out).index(files["intel-ucode/06-55-04"]) % 16 == 0


def test_only_what_is_wanted_is_taken(tmp_path: Path) -> None:
    where = tree(tmp_path, {"intel-ucode/06-55-04": update(1), "intel-ucode/06-55-07": update(2)})
    assert early_entries([where], Patterns(())) == ()
    assert early_entries([where], Patterns(["amd-ucode/*"])) == ()
    found = contents(early_entries([where], Patterns(["intel-ucode/*", "!intel-ucode/06-55-04"])))
    assert found[INTEL] == update(2)


def test_an_old_update_says_no_size(tmp_path: Path) -> None:
    old = update(3, size=0)
    assert len(old) == 2048
    assert contents(early_entries([tree(tmp_path, {"intel-ucode/x": old + update(4)})], ALL))[INTEL] == old + update(4)


def test_the_first_tree_that_has_any_counts(tmp_path: Path) -> None:
    first = tree(tmp_path, {"amd-ucode/a.bin": b"DMA\0new"}, "first")
    second = tree(tmp_path, {"amd-ucode/a.bin": b"DMA\0old", "amd-ucode/b.bin": b"DMA\0older"}, "second")
    assert contents(early_entries([first, second], ALL)) == {AMD: b"DMA\0new"}
    assert contents(early_entries([tree(tmp_path, {}, "none"), first], ALL)) == {AMD: b"DMA\0new"}


WHOLE = update(5)
BAD = {
    "amd-ucode/a.bin": [b"", b"DMB\0", b"\x7fELF"],
    "intel-ucode/06-55-04": [
        b"short",
        WHOLE[:-4],
        WHOLE + b"\0" * 48,
        WHOLE[:60] + b"!" + WHOLE[61:],
        struct.pack("<I", 2) + WHOLE[4:],
        WHOLE[:32] + struct.pack("<I", 0xFFFFFFFC) + WHOLE[36:],
        WHOLE[:32] + struct.pack("<I", 2) + WHOLE[36:],
    ],
}


@pytest.mark.parametrize(("path", "data"), [(path, data) for path, bad in BAD.items() for data in bad])
def test_what_is_no_microcode_is_refused_with_its_file(tmp_path: Path, path: str, data: bytes) -> None:
    with pytest.raises(CapsulekitError, match=f"{path}.*microcode"):
        early_entries([tree(tmp_path, {path: data})], ALL)
