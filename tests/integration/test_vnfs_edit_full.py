"""A disk that is full during umount: nodes boot what they booted, the edit is still mounted, and what lacks is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_site import NEEDS_ROOT, SHORT, EditSite, edit_site

from capsulekit.edit.syscalls import DETACH, unmount

pytestmark = [NEEDS_ROOT, pytest.mark.timeout(300)]
MB = 1 << 20


@pytest.fixture(params=["tmpfs", "ext4"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EditSite]:
    """A site whose state folder is a file system of its own, of 100 MB."""
    with edit_site(tmp_path) as made:
        state, aside = made.paths.state, tmp_path / "aside"
        state.rename(aside)
        state.mkdir()
        if request.param == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100M,mode=755", "tmpfs", state], check=True)
        else:
            with (tmp_path / "disk").open("wb") as disk:
                disk.truncate(100 * MB)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", tmp_path / "disk"], check=True)
            subprocess.run(["mount", "-o", "loop", tmp_path / "disk", state], check=True)
        shutil.copytree(aside, state, dirs_exist_ok=True)
        try:
            yield made
        finally:
            unmount(state, DETACH)


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("left", [0, 4 * MB, 12 * MB], ids=["nothing", "less than the layer", "the layer alone"])
def test_a_full_disk_leaves_the_edit_mounted_and_the_old_generation(site: EditSite, left: int) -> None:
    """With 12 MB left the layer of 10 MB is made, and finds no room in the store then."""
    base, at = site.identity, site.mount()
    body = os.urandom(10 * MB)
    (at / "etc/large").write_bytes(body)
    filler = site.paths.state / "filler"
    with filler.open("wb") as out:
        while (lacks := free(site.paths.state) - left) > 64 * 1024:
            out.write(bytes(min(lacks - 32 * 1024, MB)))
            out.flush()
    said = site.bad("umount", SHORT)
    missing = re.search(r"([0-9.]+) (MB are missing|more bytes are needed)", said)
    assert missing is not None and "again" in said, said
    needed = float(missing[1]) * (1e6 if missing[2].startswith("MB") else 1)
    assert 0 < needed < 24 * MB, said
    assert site.identity == base and len(site.history) == 1
    assert (at / "etc/large").read_bytes() == body
    filler.unlink()
    (at / "etc/small").write_text("it can be written to again\n")
    site.good("umount", SHORT)
    assert site.seen("etc/small") == "it can be written to again\n"
    site.good("vnfs", "verify", SHORT)
    site.check_clean()
