"""newc archives, read back by the real cpio."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest
from initramfs_builder import cpio
from initramfs_builder.errors import CapsulekitError

MTIME = 1_700_000_000
LATIN1 = os.fsdecode(b"etc/caf\xe9")


def pack(entries: list[cpio.Entry], *, trailer: bool = True) -> bytes:
    out = io.BytesIO()
    written = cpio.write_cpio(out, entries, MTIME, trailer=trailer)
    assert written.size == len(out.getvalue())
    return out.getvalue()


def listed(archive: bytes, *options: str) -> list[bytes]:
    done = subprocess.run(["cpio", "-t", "--quiet", *options], input=archive, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.splitlines()


def extracted(archive: bytes, where: Path) -> Path:
    where.mkdir()
    subprocess.run(["cpio", "-i", "-m", "--quiet"], input=archive, cwd=where, capture_output=True, check=True)
    return where


def sample(source: Path) -> list[cpio.Entry]:
    source.write_bytes(b"x" * 4097)
    return cpio.with_parents(
        [
            cpio.regular("etc/empty", b""),
            cpio.regular("etc/odd", b"abc", 0o600),
            cpio.regular("usr/bin/tool", source, 0o755),
            cpio.symlink("bin", "usr/bin"),
            cpio.regular(LATIN1, b"coffee"),
        ]
    )


def test_the_real_cpio_lists_what_was_written_parents_first(tmp_path: Path) -> None:
    names = listed(pack(sample(tmp_path / "tool")))
    assert names == [b"bin", b"etc", b"etc/caf\xe9", b"etc/empty", b"etc/odd", b"usr", b"usr/bin", b"usr/bin/tool"]


def test_the_real_cpio_unpacks_contents_modes_times_and_links(tmp_path: Path) -> None:
    root = extracted(pack(sample(tmp_path / "tool")), tmp_path / "out")
    assert (root / "usr/bin/tool").read_bytes() == b"x" * 4097
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/odd").stat().st_mode & 0o777 == 0o600
    assert (root / "etc/odd").stat().st_mtime == MTIME
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / LATIN1).read_bytes() == b"coffee"
    assert (root / "etc/empty").stat().st_size == 0


def test_devices_keep_their_numbers() -> None:
    archive = pack(cpio.with_parents([cpio.char_device("dev/console", 5, 1, 0o600)]))
    line = listed(archive, "-v", "--numeric-uid-gid")[-1].split()
    assert line[0] == b"crw-------"
    assert line[4:6] == [b"5,", b"1"]


def test_equal_files_never_become_hard_links(tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.write_bytes(b"same")
    root = extracted(pack([cpio.regular("a", twin), cpio.regular("b", twin)]), tmp_path / "out")
    assert (root / "a").stat().st_nlink == (root / "b").stat().st_nlink == 1


@pytest.mark.parametrize("size", range(9))
def test_the_length_is_a_multiple_of_four_and_known_before(size: int) -> None:
    entries = [cpio.regular("n" * (size + 1), b"d" * size), cpio.symlink("link", "t" * (size + 1))]
    archive = pack(entries)
    assert len(archive) % 4 == 0
    assert sum(map(cpio.entry_size, entries)) == len(pack(entries, trailer=False)) < len(archive)
    assert len(listed(archive)) == 2


def test_archives_can_follow_one_another() -> None:
    first, second = pack([cpio.regular("a", b"1")]), pack([cpio.regular("b", b"2")])
    assert listed(first) + listed(second) == [b"a", b"b"]
    assert (first + second)[len(first) : len(first) + 6] == cpio.MAGIC


def test_no_extra_entries_means_a_trailer_alone() -> None:
    assert listed(pack([])) == []


def test_an_entry_may_carry_its_own_time_and_owner(tmp_path: Path) -> None:
    archive = pack([cpio.Entry("f", 0o100644, data=b"", uid=7, gid=8, mtime=1)])
    assert b"7        8" in listed(archive, "-v", "--numeric-uid-gid")[0]
    assert (extracted(archive, tmp_path / "out") / "f").stat().st_mtime == 1


@pytest.mark.parametrize("name", ["", "/etc", "a//b", "./a", "a/../b", "..", "a/", "a\0b", "TRAILER!!!"])
def test_names_an_archive_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(CapsulekitError, match="not a name"):
        pack([cpio.regular(name, b"")])


@pytest.mark.parametrize("name", ["n" * 256, "/".join(["d" * 200] * 21)])
def test_names_too_long_for_the_kernel_are_refused(name: str) -> None:
    with pytest.raises(CapsulekitError, match="too long"):
        pack(cpio.with_parents([cpio.regular(name, b"")]))


def test_the_longest_name_the_kernel_takes_is_written() -> None:
    name = "/".join(["d" * 254] * 16)[:4095]
    archive = pack(cpio.with_parents([cpio.regular(name, b"")]))
    assert listed(archive)[-1] == name.encode()


def test_a_file_of_four_gib_is_refused_before_it_is_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as f:
        f.truncate(1 << 32)
    with pytest.raises(CapsulekitError, match="does not fit"):
        pack([cpio.regular("big", big)])


@pytest.mark.parametrize("mtime", [-1, 1 << 32])
def test_a_time_outside_the_field_is_refused(mtime: int) -> None:
    with pytest.raises(CapsulekitError, match="does not fit"):
        cpio.write_cpio(io.BytesIO(), [cpio.regular("a", b"")], mtime)


def test_an_entry_before_its_folder_is_refused() -> None:
    with pytest.raises(CapsulekitError, match="before its folder"):
        pack([cpio.regular("etc/passwd", b"")])


def test_an_entry_under_a_link_is_refused() -> None:
    with pytest.raises(CapsulekitError, match="before its folder"):
        pack(cpio.with_parents([cpio.symlink("lib", "usr/lib"), cpio.regular("lib/x", b"")]))


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(CapsulekitError, match="twice"):
        pack([cpio.regular("a", b"1"), cpio.regular("a", b"1")])
    with pytest.raises(CapsulekitError, match="twice"):
        cpio.with_parents([cpio.regular("a", b"1"), cpio.directory("a")])


@pytest.mark.parametrize(
    "entry",
    [
        cpio.Entry("a", 0o120777),
        cpio.Entry("a", 0o100644),
        cpio.Entry("a", 0o040755, data=b"x"),
        cpio.Entry("a", 0o100644, data=b"", target="x"),
        cpio.Entry("a", 0o644),
        cpio.symlink("a", ""),
        cpio.symlink("a", "t" * 4096),
    ],
)
def test_an_entry_whose_type_does_not_fit_its_content_is_refused(entry: cpio.Entry) -> None:
    with pytest.raises(CapsulekitError):
        pack([entry])


@pytest.mark.parametrize("change", [b"longer than before", b""])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, change: bytes) -> None:
    source = tmp_path / "moving"
    source.write_bytes(b"before")

    class Meddler(io.BytesIO):
        def write(self, data: object, /) -> int:
            source.write_bytes(change)
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(CapsulekitError, match="changed while it was read"):
        cpio.write_cpio(Meddler(), [cpio.regular("f", source)], MTIME)
