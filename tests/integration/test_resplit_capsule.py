"""A shipped capsule that was built whole is divided by a site's list, and made whole again: the root stays the same."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import built
import pytest
from initramfs_builder.tree import merged as merged_name
from initramfs_builder.unpack import read_image
from serving import until
from small_site import make_site

from capsulekit.capsule.manifest import HYBRID
from capsulekit.cli.main import main
from capsulekit.edit.initrd import SHELL
from capsulekit.edit.mounts import mounts_in
from capsulekit.edit.stack import Image, merged
from capsulekit.sitepaths import SitePaths
from provisioner.registry.registry import open_registry
from provisioner.vnfs.store import VnfsStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
    pytest.mark.timeout(600),
]
RECIPE = built.ROOT / "recipes/debian-12-minimal.toml"
NAME = "whole"
Facts = tuple[object, ...]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> SitePaths:
    folder = Path(tmp_path_factory.mktemp("whole"))
    paths = make_site(folder)
    capsule = built.capsule(RECIPE)
    run(paths, "trust", "add", f"{built.author_key()}.pub")
    run(paths, "-y", "vnfs", "import", str(capsule), "--as", NAME)
    (paths.config / "vnfs" / NAME).mkdir(parents=True)
    return paths


def run(paths: SitePaths, *words: str) -> None:
    assert main(["--config-dir", str(paths.config), "--state-dir", str(paths.state), *words]) == 0


def the_list(paths: SitePaths, text: str) -> None:
    (paths.config / "vnfs" / NAME / "hybridize").write_text(text)


def digests(paths: SitePaths) -> dict[str, str]:
    registry = open_registry(paths)
    try:
        return VnfsStore(paths, registry).digests(NAME)
    finally:
        registry.close()


def root(paths: SitePaths, folder: Path) -> dict[str, Facts]:
    """Every path of the root as a node sees it, with what a layer can hold of it but the content."""
    registry = open_registry(paths)
    store = VnfsStore(paths, registry)
    members, told = store.digests(NAME), store.manifest(NAME)
    registry.close()
    images = [Image(store.blob(members[layer.path])) for layer in told.layers]
    hybrid = Image(store.blob(members[HYBRID])) if HYBRID in members else None
    with merged(images, folder / "view", hybrid=hybrid) as view:
        return dict(_walk(view))


def _walk(view: Path) -> Iterator[tuple[str, Facts]]:
    for base, folders, files in os.walk(view):
        for name in (*folders, *files):
            path = Path(base) / name
            seen = path.lstat()
            kind = stat.S_IFMT(seen.st_mode)
            links = 0 if kind == stat.S_IFDIR else seen.st_nlink
            size = 0 if kind == stat.S_IFDIR else seen.st_size
            target = str(path.readlink()) if kind == stat.S_IFLNK else ""
            yield (
                str(path.relative_to(view)),
                (seen.st_mode, seen.st_uid, seen.st_gid, links, size, seen.st_mtime_ns, target),
            )


def test_divided_and_whole_again_the_root_is_the_same(paths: SitePaths, tmp_path: Path) -> None:
    before, first = root(paths, tmp_path), digests(paths)
    assert HYBRID not in first
    the_list(paths, "/usr/share/doc\n/usr/share/locale # languages\n/usr/share/perl5\n/usr/share/zoneinfo\n")
    run(paths, "vnfs", "rebuild", NAME)
    divided = digests(paths)
    assert HYBRID in divided and divided["layers/rootfs.squashfs"] != first["layers/rootfs.squashfs"]
    assert root(paths, tmp_path) == before
    assert {name: divided[name] for name in ("layers/modules.squashfs", "boot/vmlinuz", "hybridize")} == {
        name: first[name] for name in ("layers/modules.squashfs", "boot/vmlinuz", "hybridize")
    }
    blob = paths.state / "blobs" / divided[HYBRID][:2] / divided[HYBRID]
    assert blob.stat().st_mode & 0o777 == 0o644, "public, as its files were"
    # A capsule that was built whole could not mount a network layer: its initrd can now.
    initrd = paths.state / "blobs" / divided["boot/initrd.img"][:2] / divided["boot/initrd.img"]
    assert f"{SHELL}/hybrid.sh" in {merged_name(member.path) for member in read_image(initrd)}

    run(paths, "vnfs", "rebuild", NAME)
    assert digests(paths) == divided, "nothing is left to do"
    the_list(paths, "")
    run(paths, "vnfs", "rebuild", NAME)
    assert HYBRID not in digests(paths)
    assert root(paths, tmp_path) == before


def test_an_umount_divides_too_and_what_the_edit_did_stays(paths: SitePaths, tmp_path: Path) -> None:
    before = root(paths, tmp_path)
    run(paths, "vnfs", "mount", NAME, "--at", str(tmp_path / "at"))
    doc = tmp_path / "at/usr/share/doc"
    (doc / "ours").write_text("ours\n")
    (doc / "bash/copyright").unlink()
    the_list(paths, "/usr/share/doc\n")
    run(paths, "-y", "vnfs", "umount", NAME, "--message", "papers")
    after, members = root(paths, tmp_path), digests(paths)
    assert HYBRID in members and "layers/01-edit.squashfs" in members
    assert set(before) ^ set(after) == {"usr/share/doc/ours", "usr/share/doc/bash/copyright"}
    blob = paths.state / "blobs" / members["layers/01-edit.squashfs"][:2] / members["layers/01-edit.squashfs"]
    assert blob.stat().st_mode & 0o777 == 0o600, "what was made here is private"


def test_a_rebuild_that_was_killed_while_it_divides_is_cleared_by_the_next_one(paths: SitePaths) -> None:
    the_list(paths, "/usr/share/locale\n")
    words = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs", "rebuild", NAME]
    program = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()", *words]
    with subprocess.Popen(program) as work:
        until(lambda: any("split" in str(mount.at) for mount in mounts_in(paths.state)))
        work.kill()
    assert any(True for _ in mounts_in(paths.state)), "it was killed in the midst"
    run(paths, "vnfs", "rebuild", NAME)
    assert HYBRID in digests(paths)
    assert [mount.at for mount in mounts_in(paths.state)] == []
    assert list(paths.state.glob("vnfs/*/.layer-*")) == []


def test_a_list_that_takes_what_boots_is_refused_and_nothing_changes(
    paths: SitePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(paths)
    the_list(paths, "/usr/share\n/usr/bin/*\n")
    words = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs", "rebuild", NAME]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "which a node needs to boot: " in said and said.count("\n") <= 2
    assert digests(paths) == before
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(paths.state) in line]
