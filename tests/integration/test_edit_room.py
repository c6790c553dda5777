"""A full disk while an edit is packed, and memory that does not grow with what is packed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_stack import Capsule, layer_of, left_of

from capsulekit.edit import session
from capsulekit.edit.pack import pack_changes
from capsulekit.edit.record import lock
from capsulekit.run import DiskFull

MIB = 1 << 20


@pytest.fixture
def capsule(tmp_path: Path) -> Iterator[Capsule]:
    """A root with nearly nothing in it."""
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/x").write_text("x")
    made = Capsule(tmp_path, [layer_of(tmp_path / "root", tmp_path / "root.squashfs")])
    yield made
    made.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_says_about_how_much_is_missing_and_the_edit_goes_on(capsule: Capsule, small: Path) -> None:
    """Nothing is left on the disk; with enough room it works."""
    capsule.open()
    for number in range(8):
        (capsule.at / f"etc/random{number}").write_bytes(os.urandom(4 * MIB))
    with pytest.raises(DiskFull) as full, session.frozen(capsule.edit):
        pack_changes(capsule.edit, small / "new.squashfs", small / "new.acl")
    found = re.search(r"about (\d+) more bytes are needed in (\S+)", full.value.message)
    assert found and found[2] == str(small)
    assert 12 * MIB < int(found[1]) < 28 * MIB  # 24 are
    assert list(small.iterdir()) == []
    (capsule.at / "etc/more").write_text("more")
    packed = capsule.pack()
    assert packed.unpacked == 32 * MIB + 4
    assert left_of(capsule.folder) == [str(small)]


def test_a_full_disk_while_layers_are_flattened_is_said_too(capsule: Capsule, small: Path) -> None:
    """And the layers are as they were."""
    for number in range(2):
        capsule.change(lambda root, n=number: (root / f"etc/random{n}").write_bytes(os.urandom(8 * MIB)))
    before = [image.path.read_bytes() for image in capsule.images]
    from capsulekit.edit.flatten import flatten

    with pytest.raises(DiskFull, match=r"about \d+ more bytes are needed"):
        flatten(
            capsule.images[:2], [], below=capsule.images[2:], below_lists=[], hybrid=None,
            work=capsule.folder / "work", layer_out=small / "flat.squashfs", acl_out=small / "flat.acl",
        )  # fmt: skip
    assert list(small.iterdir()) == []
    assert [image.path.read_bytes() for image in capsule.images] == before
    assert left_of(capsule.folder) == [str(small)]


PACK = """
import resource, sys
from pathlib import Path
from capsulekit.edit import session
from capsulekit.edit.pack import pack_changes
from capsulekit.edit.record import lock
with session.frozen(Path(sys.argv[1])):
    pack_changes(Path(sys.argv[1]), Path(sys.argv[2]) / "m.squashfs", Path(sys.argv[2]) / "m.acl")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_large_file_is_packed_piece_by_piece(capsule: Capsule) -> None:
    """What it takes in memory is no more than for a small one."""
    used = []
    for size in (1, 300):
        capsule.open()
        with (capsule.at / "etc/large").open("wb") as out:
            out.truncate(size * MIB)
        argv = [sys.executable, "-c", PACK, capsule.edit, capsule.folder]
        used.append(int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout))
        session.discard(capsule.edit)
    assert used[1] - used[0] < 32 << 10  # KiB


def test_an_edit_that_has_filled_the_disk_can_be_closed(capsule: Capsule) -> None:
    """That is the way to free it: it takes room that was held back, also after an umount that failed."""
    state = capsule.folder / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", state], check=True)
    try:
        capsule.open()
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"), (capsule.at / "big").open("ab", buffering=0) as out:
                while True:
                    out.write(bytes(4096))
            with pytest.raises(RuntimeError), session.frozen(capsule.edit):
                raise RuntimeError
        with lock(state, "another"):
            session.discard(capsule.edit)
        assert not capsule.edit.exists()
        assert not capsule.at.exists()
    finally:
        capsule.close()
        subprocess.run(["umount", state], check=True)
    assert left_of(capsule.folder) == []
