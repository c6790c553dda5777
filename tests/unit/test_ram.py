"""A root that would not fit the RAM its recipe allows is refused, and the ten largest packages are named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from told_capsule import ROOT, Node, write_layer

from capsulekit.errors import CapsulekitError
from capsulekit.metadata.ram import ROOM, check_ram

pytestmark = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")
SIZES = {f"pkg{n:02}": n * 100_000 for n in range(1, 13)}


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root in which package NN has a file of NN * 100 kB, and a hard link to it, which takes nothing."""
    files = {f"usr/{name}": Node(b"x" * size) for name, size in SIZES.items()}
    links = {f"usr/{name}.again": Node(hard=f"usr/{name}") for name in SIZES}
    lists = {
        f"var/lib/dpkg/info/{name}:amd64.list": Node(f"/usr/{name}\n/usr/{name}.again\n".encode()) for name in SIZES
    }
    return write_layer(tmp_path / "rootfs.squashfs", {**ROOT, **files, **links, **lists})


def test_what_fits_to_the_byte_is_allowed_and_one_byte_less_is_not(rootfs: Path) -> None:
    layers = [("layers/modules.squashfs", 5_000_000), ("layers/rootfs.squashfs", 9_000_000)]
    check_ram(14_000_000 + ROOM, layers, rootfs)
    with pytest.raises(CapsulekitError, match=re.escape("the root needs 81.1 MB of RAM (modules.squashfs 5.0 MB")):
        check_ram(14_000_000 + ROOM - 1, layers, rootfs)


def test_the_ten_largest_packages_are_named_largest_first_with_their_unpacked_bytes(rootfs: Path) -> None:
    with pytest.raises(CapsulekitError) as refused:
        check_ram(1, [("layers/rootfs.squashfs", 1)], rootfs)
    named = re.findall(r"(pkg\d\d) ([0-9.]+) MB", refused.value.hint or "")
    assert named == [(f"pkg{n:02}", f"{n / 10:.1f}") for n in range(12, 2, -1)]
