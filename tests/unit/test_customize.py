"""mmdebstrap's customize hook: a recipe's files land inside the new root, through its links and never the host's."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from capsulekit.recipe.model import Recipe, RootFile
from capsulekit.rootfs.root import _prepare

HOOK = Path(__file__).parents[2] / "capsulekit/apt/customize.sh"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A merged root with the links Debian has, and one that leaves it."""
    root = tmp_path / "root"
    for folder in ("usr/sbin", "usr/lib", "run", "var", "etc/apt/sources.list.d", "usr/bin"):
        (root / folder).mkdir(parents=True)
    for link, target in (("sbin", "usr/sbin"), ("lib", "usr/lib"), ("var/run", "/run"), ("up", "../../../..")):
        (root / link).symlink_to(target)
    (root / "out").symlink_to(tmp_path / "host")
    (root / "usr/bin/apt-get").write_text("")
    (root / "usr/bin/apt-get").chmod(0o755)
    (tmp_path / "host").mkdir()
    return root


def customized(root: Path, *files: RootFile, umask: int = 0o077) -> None:
    work = root.parent / "work"
    work.mkdir()
    recipe = Recipe("", "", "n", "1", "debian", "12", "amd64", "/i", "", (), "k", (), (), "extract", files=files)
    before = os.umask(umask)
    try:
        _prepare(recipe, work)
        (work / "sources").write_text("deb x y z\n")
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CAPSULEKIT_WORK": str(work)}
        subprocess.run(["sh", HOOK, root], env=env, check=True, timeout=60)
    finally:
        os.umask(before)


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
    customized(root, *(RootFile(f"/{way}/{mark}", b"x", 0o644) for way in ("var/run", "up", "out")))
    assert (root / "run" / mark).exists() and (root / mark).exists()
    assert (root / str(root.parent / "host")[1:] / mark).exists()
    assert not Path("/run", mark).exists() and list((root.parent / "host").iterdir()) == []


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
