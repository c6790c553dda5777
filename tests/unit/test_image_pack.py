"""How an image is packed: what is stored as it is, frames that are cut where an entry ends, and frames kept."""

from __future__ import annotations

import io
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import TRAILER, archives, names_in, streams, unpack_image, without_padding
from initramfs_builder import cpio, pack
from initramfs_builder.archive import Archive
from initramfs_builder.compress import COMPRESSIONS, LEVEL_MAX, Compression, compression_for
from initramfs_builder.cpio import Entry, regular
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.pack import Packing, cut
from initramfs_builder.store import Store, passing
from initramfs_builder.tree import Tree
from initramfs_builder.unpack import read_stream

MTIME = 1_700_000_000
TEXT = (b"the same words again and again, " * 4000)[:100_000]


@pytest.fixture(autouse=True, scope="module")
def small_frames() -> Iterator[None]:
    """An eighth of the real size, for the tests' sake."""
    with patch.object(pack, "FRAME", 1 << 20), patch.object(pack, "SMALL", 1 << 17):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "scratch").mkdir()
    return Store(tmp_path / "store", tmp_path / "scratch")


def archive_of(*entries: Entry) -> Archive:
    archive = Archive()
    for entry in entries:
        archive.add(entry)
    return archive


def several(seed: int = 1) -> Archive:
    """Files of two large folders, a small one, and two that are compressed already."""
    noise = random.Random(seed)
    large = [regular(f"usr/bin/{n:02}", noise.randbytes(75_000)) for n in range(20)]
    large += [regular(f"usr/lib/firmware/{n}.bin", TEXT * 2) for n in range(4)]
    kept = [regular(f"usr/lib/modules/6/{n}", noise.randbytes(3001)) for n in ("a.ko.zst", "b.ko.xz")]
    return archive_of(*large, *kept, regular("init", b"#!/bin/sh\n", 0o755), regular("etc/hosts", b"127.0.0.1 h\n"))


def packed(archive: Archive, **how: Any) -> bytes:
    out = io.BytesIO()
    report = pack.pack(out, archive, Packing(MTIME, how.pop("level", 3), **how))
    image = out.getvalue()
    assert report.packed == len(image)
    assert report.unpacked == sum(map(len, archives(image)))
    return image


def test_what_is_compressed_already_is_stored_before_all_else_and_nothing_is_there_twice() -> None:
    image = packed(several())
    stored, rest = archives(image)
    assert b"usr/lib/modules/6/a.ko.zst" in stored
    assert b"usr/bin" not in stored
    assert image.startswith(stored)
    listed = [
        name
        for archive in (stored, rest)
        for name in subprocess.run(["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True)
        .stdout.decode()
        .splitlines()
    ]
    assert len(listed) == len(set(listed)) == len(several().entries())


def test_what_the_kernel_reads_first_comes_first_and_is_not_compressed() -> None:
    early = regular("kernel/x86/microcode/AuthenticAMD.bin", b"microcode")
    image = packed(several(), early=(early,))
    assert image.startswith(b"070701")
    first = archives(image)[0]
    assert image.startswith(first)
    assert b"AuthenticAMD.bin\0" in first
    assert first.count(TRAILER) == 1


def test_unpacked_by_the_real_cpio_every_file_is_what_it_was(tmp_path: Path) -> None:
    archive = several()
    root = unpack_image(packed(archive), tmp_path / "root")
    for entry in archive.entries():
        if isinstance(entry.data, bytes):
            assert (root / entry.path).read_bytes() == entry.data


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda one: one.name)
def test_each_compression_is_unpacked_by_its_own_program(compression: Compression, tmp_path: Path) -> None:
    image = packed(several(), compression=compression, level=9)
    stored, rest = archives(image)
    packed_part = without_padding(image[len(stored) :])
    done = subprocess.run([compression.name, "-dc"], input=packed_part, capture_output=True, check=True)
    assert done.stdout == rest
    if compression.name == "xz":
        (tmp_path / "part.xz").write_bytes(packed_part)
        said = subprocess.run(["xz", "--list", "-vv", str(tmp_path / "part.xz")], capture_output=True, check=True)
        assert b"CRC32" in said.stdout, "the kernel takes no other sums"
        assert b"CRC64" not in said.stdout
        assert b"x86" not in said.stdout
    assert {member.path for member in read_stream(io.BytesIO(image), "image")} == names_in(image)


def test_every_frame_ends_where_an_entry_ends_and_only_the_last_has_the_trailer() -> None:
    image = packed(several())
    frames = streams(image[len(archives(image)[0]) :])
    assert len(frames) > 2
    for frame in frames:
        assert frame.startswith(b"070701")
        assert len(frame) <= pack.FRAME + pack.SMALL
    assert [frame.count(TRAILER) for frame in frames] == [0] * (len(frames) - 1) + [1]


@given(sizes=st.lists(st.integers(0, 3 << 17), max_size=30), folders=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_cutting_keeps_every_entry_in_its_order_and_frames_small(sizes: list[int], folders: int) -> None:
    entries = cpio.with_parents(regular(f"usr/lib/{n % folders}/{n:02}", bytes(size)) for n, size in enumerate(sizes))
    frames = list(cut(entries))
    assert [entry for frame in frames for entry in frame] == entries
    for frame in frames:
        sizes_of = [cpio.entry_size(entry) for entry in frame]
        assert sum(sizes_of) <= pack.FRAME + pack.SMALL or len(frame) == 1


def test_a_changed_file_makes_only_its_own_frame_again(store: Store) -> None:
    def kept() -> set[Path]:
        return {path for path in store.folder.rglob("*") if path.is_file()}

    packed(several(), store=store)
    before = kept()
    archive = several()
    archive.add(regular("etc/motd", b"new\n"))
    packed(archive, store=store)
    assert len(before) > 2
    assert len(kept() - before) == 1


def test_the_bytes_are_the_same_with_a_cold_store_a_warm_one_and_none(store: Store) -> None:
    image = packed(several())
    assert packed(several(), store=store) == image
    assert packed(several(), store=store) == image


def test_a_warm_store_compresses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = packed(several(), store=store)
    monkeypatch.setattr(store, "make", lambda *_: pytest.fail("made again"))
    assert packed(several(), store=store) == image


@pytest.mark.parametrize("other", [{"level": 4}, {"compression": COMPRESSIONS[2]}])
def test_another_level_or_compression_is_never_taken_from_the_store(store: Store, other: dict[str, Any]) -> None:
    packed(several(), store=store)
    assert packed(several(), store=store, **other) == packed(several(), **other)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "its digest": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "its end": lambda data: data[:-100],
    "all of it": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_frame_is_made_again(store: Store, damage: Callable[[bytes], bytes]) -> None:
    image = packed(several(), store=store)
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(damage(whole[path]))
    assert packed(several(), store=store) == image
    assert {path: path.read_bytes() for path in files} == whole


def test_who_finds_a_damaged_frame_leaves_alone_what_another_build_makes_of_it(store: Store) -> None:
    made = store.make("ab" * 32, lambda out: out.write(TEXT))
    made.path.write_bytes(b"damaged")
    assert store.get("ab" * 32) is None
    assert made.path.exists(), "it may be whole again by now, and in use"
    again = store.make("ab" * 32, lambda out: out.write(TEXT))
    assert store.get("ab" * 32) == again == made


def test_a_store_that_is_removed_meanwhile_is_an_error_and_no_short_image(store: Store) -> None:
    held = store.make("ab" * 32, lambda out: out.write(TEXT))
    held.path.unlink()
    with pytest.raises(FileNotFoundError):
        cpio.copy(io.BytesIO(), held)
    assert store.get("ab" * 32) is None


def test_several_builds_at_once_give_the_same_bytes_and_leave_nothing_behind(store: Store) -> None:
    images: list[bytes] = []
    threads = [threading.Thread(target=lambda: images.append(packed(several(), store=store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 4
    assert len(set(images)) == 1
    assert list(store.scratch.iterdir()) == []


def test_a_failing_maker_leaves_nothing(store: Store) -> None:
    def fail(out: object) -> None:
        raise CapsulekitError("no")

    with pytest.raises(CapsulekitError):
        store.make("cd" * 32, fail)
    assert list(store.scratch.iterdir()) == []
    assert store.get("cd" * 32) is None


def test_a_file_that_changes_between_digest_and_compression_is_never_kept(store: Store, tmp_path: Path) -> None:
    moving = tmp_path / "moving"
    moving.write_bytes(b"a" * 100)

    class Meddling(Compression):
        name, option = "meddling", ""

        def stream(self, out: Any, level: int, size: int) -> Any:
            moving.write_bytes(b"b" * 100)
            return COMPRESSIONS[0].stream(out, level, size)

        def version(self) -> str:
            return "1"

    with pytest.raises(CapsulekitError, match="a file changed while it was read, among moving to moving"):
        packed(archive_of(regular("moving", moving)), compression=Meddling(), store=store)
    assert not any(path.is_file() for path in store.folder.rglob("*"))


def test_a_passing_store_is_gone_afterwards() -> None:
    with passing() as store:
        held = store.make("ef" * 32, lambda out: out.write(TEXT))
        assert store.get("ef" * 32) == held
    assert not held.path.exists()


# --- what the kernel can unpack


def kernel_tree(tmp_path: Path, config: str | None, path: str = "boot/config-{}", release: str = "6.1.0-test") -> Tree:
    (tmp_path / "usr/lib/modules" / release).mkdir(parents=True)
    if config is not None:
        file = tmp_path / path.format(release)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(config)
    return Tree(tmp_path)


INITRD = "CONFIG_BLK_DEV_INITRD=y\n"
CONFIGURED = {
    "zstd": INITRD + "CONFIG_RD_GZIP=y\nCONFIG_RD_XZ=y\nCONFIG_RD_ZSTD=y\n",
    "xz": INITRD + "CONFIG_RD_GZIP=y\nCONFIG_RD_XZ=y\n# CONFIG_RD_ZSTD is not set\n",
    "gzip": INITRD + "CONFIG_RD_GZIP=y\n# CONFIG_RD_XZ is not set\nCONFIG_RD_ZSTD=n\n",
}


@pytest.mark.parametrize("path", ["boot/config-{}", "usr/lib/modules/{}/config", "lib/modules/{}/config"])
@pytest.mark.parametrize("name", CONFIGURED)
def test_the_compression_is_the_best_of_the_kernels_configuration(tmp_path: Path, name: str, path: str) -> None:
    taken, remark = compression_for(kernel_tree(tmp_path, CONFIGURED[name], path), "6.1.0-test")
    assert taken.name == name
    assert remark is None


@pytest.mark.parametrize(
    ("release", "name"),
    [("6.1.0-test", "zstd"), ("5.9.0", "zstd"), ("5.8.18-x", "gzip"), ("4.18.0-553.el8", "gzip"), ("custom", "gzip")],
)
def test_without_a_configuration_the_number_decides_and_that_is_said(tmp_path: Path, release: str, name: str) -> None:
    taken, remark = compression_for(kernel_tree(tmp_path, None, release=release), release)
    assert taken.name == name
    assert remark == f"kernel {release} comes without its configuration: {name} is taken by its number"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("CONFIG_RD_ZSTD=y\n", "takes no initramfs: boot/config-6.1.0-test has no CONFIG_BLK_DEV_INITRD=y"),
        (INITRD + "CONFIG_RD_LZ4=y\n", "unpacks none of our compressions"),
        ("\0\xff", "takes no initramfs"),
    ],
)
def test_a_kernel_that_cannot_unpack_an_image_is_refused(tmp_path: Path, config: str, said: str) -> None:
    with pytest.raises(CapsulekitError, match=said):
        compression_for(kernel_tree(tmp_path, config), "6.1.0-test")


def test_no_level_makes_a_window_the_kernel_does_not_take() -> None:
    import zstandard

    data = os.urandom(64) * (40 << 14)
    for level in (1, 9, LEVEL_MAX):
        out = io.BytesIO()
        with COMPRESSIONS[0].stream(out, level, len(data)) as stream:
            stream.write(data)
        assert zstandard.get_frame_parameters(out.getvalue()).window_size <= 128 << 20
