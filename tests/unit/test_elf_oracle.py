"""What our ELF reader says of this machine's own programs and libraries is what pyelftools says of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from initramfs_builder.elf import Elf, read_elf
from initramfs_builder.elffile import MAGIC

MOST = 150  # of each folder
FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/systemd")


def theirs(path: Path) -> Elf:
    """The same facts, read by pyelftools."""
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        interpreter, found = None, dict[str, list[str]]()
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_INTERP":
                interpreter = segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags():
                    name = str(tag.entry.d_tag).removeprefix("DT_").lower()
                    if name in ("needed", "rpath", "runpath"):
                        value = str(getattr(tag, name))
                        found.setdefault(name, []).extend(
                            [value] if name == "needed" else filter(None, value.split(":"))
                        )
        needed, rpath, runpath = (tuple(found.get(name, ())) for name in ("needed", "rpath", "runpath"))
        return Elf((elf.elfclass, elf["e_machine"]), interpreter, needed, rpath, runpath)


def is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


@pytest.mark.parametrize("folder", [f for f in FOLDERS if Path(f).is_dir()])
def test_the_same_is_read_as_by_pyelftools(folder: str) -> None:
    compared = 0
    for path in islice(filter(is_elf, sorted(Path(folder).iterdir())), MOST):
        ours, expected = read_elf(path), theirs(path)
        assert ours is not None
        assert (ours.kind, ours.interpreter) == (expected.kind, expected.interpreter), path
        assert (ours.needed, ours.rpath, ours.runpath) == (expected.needed, expected.rpath, expected.runpath), path
        compared += 1
    assert compared > 20
