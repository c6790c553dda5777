"""customize.sh: a recipe's files land inside the new root, through its links and never the host's."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from capsulekit.recipe.model import Recipe, RootFile
from capsulekit.rootfs.root import _customize, _prepare
from capsulekit.run import CommandFailed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to unpack and pack a root with its owners")


class Maker:
    """A distribution that brings a sources.list and nothing else."""

    def finish(self, work: Path) -> None:
        (work / "sources").write_text("deb x y z\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A merged root with the links Debian has, and one that leaves it."""
    root = tmp_path / "root"
    for folder in ("usr/sbin", "usr/lib", "run", "var", "etc/apt/sources.list.d", "usr/bin"):
        (root / folder).mkdir(parents=True)
    for link, target in (
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("var/lib", "/opt"),
        ("var/run", "/run"),
        ("up", "../../../.."),
    ):
        (root / link).symlink_to(target)
    (root / "out").symlink_to("/etc")
    (root / "usr/bin/apt-get").write_text("")
    (root / "usr/bin/apt-get").chmod(0o755)
    return root


def customized(root: Path, *files: RootFile, umask: int = 0o077) -> None:
    work = root.parent / "work"
    work.mkdir()
    recipe = Recipe("", "", "n", "1", "debian", "12", "amd64", "/i", "", (), "k", (), (), "extract", files=files)
    installed, finished = root.parent / "before.tar", root.parent / "after.tar"
    subprocess.run(["tar", "-C", root, "-cf", installed, "."], check=True, timeout=60)
    before = os.umask(umask)
    try:
        _prepare(recipe, Maker(), work, "")  # type: ignore[arg-type]
        with finished.open("wb") as out:
            _customize(SimpleNamespace(epoch=1), installed, work, out, False)  # type: ignore[arg-type]
    finally:
        os.umask(before)
    shutil.rmtree(root)
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xpf", finished], check=True, timeout=60)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_links_on_the_way_to_a_file_stay_and_are_followed(root: Path) -> None:
    customized(
        root,
        RootFile("/sbin/tool", b"#!/bin/sh\n", 0o4755),
        RootFile("/lib/systemd/system/a b.service", b"\x00\xff", 0o600),
    )
    assert (root / "sbin").is_symlink() and (root / "lib").is_symlink()
    assert (root / "usr/sbin/tool").read_bytes() == b"#!/bin/sh\n" and mode(root / "usr/sbin/tool") == 0o4755
    assert (root / "usr/lib/systemd/system/a b.service").read_bytes() == b"\x00\xff"
    assert mode(root / "usr/lib/systemd") == 0o755, "the caller's umask plays no part"


def test_a_link_that_points_out_of_the_root_never_reaches_the_host(root: Path) -> None:
    mark = f"mark-{os.getpid()}"
    customized(root, *(RootFile(f"/{way}/{mark}", b"x", 0o644) for way in ("var/lib", "up", "out")))
    assert (root / "opt" / mark).exists() and (root / mark).exists()
    assert (root / "etc" / mark).exists()
    assert not Path("/opt", mark).exists() and not Path("/etc", mark).exists()


def test_a_root_with_apt_gets_its_sources_readable_by_all(root: Path) -> None:
    (root / "etc/apt/sources.list").write_text("deb copy:///build ./\n")
    (root / "etc/apt/sources.list").chmod(0o600)
    customized(root)
    assert (root / "etc/apt/sources.list").read_text() == "deb x y z\n"
    assert mode(root / "etc/apt/sources.list") == 0o644


def test_a_root_without_apt_keeps_no_sources(root: Path) -> None:
    (root / "usr/bin/apt-get").unlink()
    (root / "etc/apt/sources.list").write_text("deb copy:///build ./\n")
    customized(root)
    assert not (root / "etc/apt/sources.list").exists()


def test_a_file_replaces_what_the_packages_brought(root: Path) -> None:
    (root / "etc/motd").symlink_to("/run/motd")
    (root / "etc/issue").write_text("theirs")
    customized(root, RootFile("/etc/issue", b"ours", 0o644), RootFile("/etc/motd", b"ours", 0o644))
    assert (root / "etc/issue").read_text() == "ours" and (root / "etc/motd").read_text() == "ours"
    assert not (root / "etc/motd").is_symlink(), "the name itself is what the recipe says, not what it points to"


def test_an_owner_is_looked_up_in_the_root_not_on_the_host(root: Path) -> None:
    (root / "etc/passwd").write_text("slurm:x:4711:4712::/:/bin/sh\n")
    (root / "etc/group").write_text("hpc:x:815:\n")
    customized(root, RootFile("/etc/key", b"x", 0o640, "slurm", "hpc"), RootFile("/etc/n", b"x", 0o600, "12", "13"))
    assert ((root / "etc/key").stat().st_uid, (root / "etc/key").stat().st_gid) == (4711, 815)
    assert ((root / "etc/n").stat().st_uid, (root / "etc/n").stat().st_gid) == (12, 13)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (RootFile("/etc/x", b"", 0o644, "nobody-knows"), "there is no nobody-knows in the root's /etc/passwd"),
        (RootFile("/etc/x", b"", 0o644, "root", "no-such"), "there is no no-such in the root's /etc/group"),
        (RootFile("/usr/bin", b"", 0o644), "the file /usr/bin cannot be written: it is a folder in the root"),
        (RootFile("/var/run/x", b"", 0o644), "the file /var/run/x would be lost: /run is empty in every capsule"),
        (RootFile("/tmp/deep/x", b"", 0o644), "the file /tmp/deep/x would be lost: /tmp is empty in every capsule"),
        (RootFile("/loop/x", b"", 0o644), "the path /loop leads through a loop of links"),
        (RootFile("/usr/bin/apt-get/x", b"", 0o644), "the file /usr/bin/apt-get/x cannot be written"),
    ],
)
def test_a_file_that_cannot_be_placed_is_named(root: Path, file: RootFile, why: str) -> None:
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "loop").symlink_to("loop")
    with pytest.raises(CommandFailed, match=why):
        customized(root, file)
