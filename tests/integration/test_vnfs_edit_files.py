"""Capsule files: mounted where their layers lie in the tar, and written anew, sealed, in one rename."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import as_others
import built
import pytest
from edit_site import NAME, NEEDS_ROOT, EditSite, edit_site, loops

from capsulekit.capsule.manifest import MEMBER, Manifest, loads
from capsulekit.capsule.read import open_capsule
from capsulekit.edit.mounts import mounts_in
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.trust.minisign import create_key_files

pytestmark = [NEEDS_ROOT, pytest.mark.timeout(300)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[EditSite]:
    """Folders without a site in them, and a capsule file."""
    with edit_site(tmp_path) as made:
        shutil.rmtree(made.paths.config)
        shutil.rmtree(made.paths.state)
        shutil.copy(built.capsule(built.BUSYBOX), made.top / "x.vnfs")
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[EditSite]:
    with edit_site(tmp_path) as made:
        shutil.copy(built.capsule(built.BUSYBOX), made.top / "x.vnfs")
        yield made


def pub() -> str:
    return f"{built.author_key()}.pub"


def identity(path: Path) -> str:
    with open_capsule(path) as capsule:
        return sha256_bytes(capsule.sums())


def manifest(path: Path) -> Manifest:
    with open_capsule(path) as capsule:
        return loads(capsule.read_member(MEMBER))


def test_an_author_edits_a_file_without_any_site(desk: EditSite) -> None:
    file, before = desk.top / "x.vnfs", identity(desk.top / "x.vnfs")
    said = desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    assert said.startswith(f"{NAME} is mounted at {desk.at}\n") and "Nodes that boot" not in said
    assert set(loops(desk.top)) == {str(file)}, "nothing is unpacked: loop devices lie in the file itself"
    (desk.at / "etc/motd").write_text("by its author\n")
    (desk.at / "etc/udhcpc.sh").unlink()
    assert "added /etc/motd" in desk.good("umount", file, "--dry-run", "--key", built.author_key())
    done = desk.json("umount", file, "--key", built.author_key())
    assert (done["changed"], done["file"], done["identity"]) == (True, str(file), identity(file))
    told = manifest(file)
    assert told.layers[0].path == "layers/01-edit.squashfs" and not told.layers[0].private
    assert file.stat().st_mode & 0o777 == 0o644
    desk.good("verify", file, "--pubkey", pub())
    with open_capsule(file) as capsule:
        assert sha256_bytes(capsule.read_member("parent/0/SHA256SUMS")) == before
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    assert (desk.at / "etc/motd").read_text() == "by its author\n" and not (desk.at / "etc/udhcpc.sh").exists()
    desk.good("close", file)
    assert list(mounts_in(desk.top)) == []


def test_stock_tools_check_an_edited_file_in_two_lines(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    desk.good("shell", file, "--at", desk.at, "--pubkey", pub(), "--key", built.author_key(), "--",
              "/bin/busybox", "touch", "/etc/new")  # fmt: skip
    out = desk.top / "out"
    out.mkdir()
    subprocess.run(["tar", "xf", file, "-C", out], check=True)
    subprocess.run(["minisign", "-Vqm", "SHA256SUMS", "-p", pub()], cwd=out, check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, check=True)


def test_it_can_be_written_to_another_file(desk: EditSite) -> None:
    file, out = desk.top / "x.vnfs", desk.top / "y.vnfs"
    before = sha256_file(file)
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    (desk.at / "etc/motd").write_text("x\n")
    assert str(out) in desk.good("umount", desk.at, "-o", out, "--key", built.author_key())
    assert sha256_file(file) == before
    assert manifest(out).layers[0].path == "layers/01-edit.squashfs"
    desk.good("verify", out, "--pubkey", pub())


def test_who_has_no_key_is_told_before_anything_is_packed(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    (desk.at / "etc/motd").write_text("x\n")
    assert "name a key: --key PATH" in desk.bad("umount", file)
    assert "gone" in desk.bad("umount", file, "--key", desk.top / "gone")
    desk.good("umount", file, "--key", built.author_key())


def test_the_sites_key_signs_where_there_is_a_site_and_the_layer_is_private(site: EditSite) -> None:
    """Trust is the site's, too: its keyring has the author, and its own key."""
    file = site.top / "x.vnfs"
    for text in ("one", "two"):
        site.good("mount", file, "--at", site.at)
        (site.at / "etc/motd").write_text(text)
        site.good("umount", file)
    told = manifest(file)
    assert [(layer.path, layer.private) for layer in told.layers[:2]] == [
        ("layers/02-edit.squashfs", True), ("layers/01-edit.squashfs", True),
    ]  # fmt: skip
    assert file.stat().st_mode & 0o777 == 0o600
    site.check_clean()
    with open_capsule(file) as capsule:
        assert {name.split("/")[1] for name in capsule.members if name.startswith("parent/")} == {"0", "1"}


def test_no_longer_chain_of_parents_than_two(desk: EditSite) -> None:
    file, identities = desk.top / "x.vnfs", [identity(desk.top / "x.vnfs")]
    for number in range(3):
        desk.good("shell", file, "--at", desk.at, "--pubkey", pub(), "--key", built.author_key(), "--",
                  "/bin/busybox", "touch", f"/etc/{number}")  # fmt: skip
        identities.append(identity(file))
    with open_capsule(file) as capsule:
        parents = [sha256_bytes(capsule.read_member(f"parent/{n}/SHA256SUMS")) for n in (0, 1)]
        assert not [name for name in capsule.members if name.startswith("parent/2")]
    assert parents == [identities[2], identities[0]], "what was changed, and what its author had made first"


def test_a_file_that_is_not_what_somebody_trusted_signed_is_not_mounted(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    create_key_files(desk.top / "stranger", None)
    desk.bad("mount", file, "--at", desk.at, status=3)
    assert "no --pubkey holds that key" in desk.bad(
        "mount", file, "--at", desk.at, "--pubkey", desk.top / "stranger.pub", status=3
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "wrong digest" in desk.bad("mount", file, "--at", desk.at, "--pubkey", pub(), status=3)
    file.write_bytes(data[: len(data) // 2])
    desk.bad("mount", file, "--at", desk.at, "--pubkey", pub(), status=3)
    assert not desk.at.exists() and list(mounts_in(desk.top)) == []


def test_a_file_that_was_changed_meanwhile_is_not_written_over(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    (desk.at / "etc/motd").write_text("x\n")
    file.rename(desk.top / "kept")
    file.write_bytes(b"something else" * 1000)
    desk.bad("umount", desk.at, "--key", built.author_key(), status=3)
    (desk.top / "kept").replace(file)
    other = desk.top / "other.vnfs"
    shutil.copy(file, other)
    desk.good("umount", desk.at, "--key", built.author_key())
    assert manifest(file).layers[0].path == "layers/01-edit.squashfs"


def test_a_folder_or_a_missing_place_as_output_is_refused_and_it_stays_mounted(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    (desk.at / "etc/motd").write_text("x\n")
    for out in (desk.top, desk.top / "no/such/folder.vnfs", Path("/dev/null")):
        desk.bad("umount", file, "-o", out, "--key", built.author_key())
        assert (desk.at / "etc/motd").read_text() == "x\n"
        (desk.at / "etc/motd").write_text("x\n")
    desk.good("umount", file, "--key", built.author_key())


def test_no_other_file_is_written_over(desk: EditSite, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other, link = desk.top / "x.vnfs", desk.top / "mine", desk.top / "link"
    other.write_text("mine\n")
    link.symlink_to("mine")
    (desk.top / "same.vnfs").symlink_to(file)
    before = identity(file)
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    (desk.at / "etc/motd").write_text("x\n")
    monkeypatch.chdir(desk.top)
    for out in ("mine", "link", desk.top / "mine"):
        for more in ((), ("--dry-run",)):
            assert "is there already" in desk.bad("umount", file, "-o", out, "--key", built.author_key(), *more)
    assert "no folder" in desk.bad("umount", file, "-o", "no/x.vnfs", "--key", built.author_key(), "--dry-run")
    assert other.read_text() == "mine\n" and link.is_symlink() and identity(file) == before
    # Over itself, by another name, is what it would be without -o.
    desk.good("umount", file, "-o", "same.vnfs", "--key", built.author_key())
    assert identity(file) != before and (desk.top / "same.vnfs").is_symlink()


def test_a_file_that_was_removed_meanwhile_is_said_with_the_ways_out(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    (desk.at / "etc/motd").write_text("x\n")
    file.rename(desk.top / "away.vnfs")
    said = desk.bad("umount", file, "--key", built.author_key())
    assert (
        "was removed while it was mounted" in said
        and f"put it back, or discard the edit: capsulekit close {file}" in said
    )
    (desk.top / "away.vnfs").rename(file)
    desk.good("umount", file, "--key", built.author_key())


def test_a_second_mount_of_the_same_file_by_another_path_is_refused(
    desk: EditSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = desk.top / "x.vnfs"
    monkeypatch.chdir(desk.top)
    desk.good("mount", "x.vnfs", "--at", desk.at, "--pubkey", pub())
    (desk.top / "link.vnfs").symlink_to(file)
    for word in (file, "./x.vnfs", desk.top / "link.vnfs"):
        assert "is mounted for editing by" in desk.bad("mount", word, "--pubkey", pub())
    desk.good("close", "x.vnfs")


def test_layers_are_flattened_in_files_too(desk: EditSite) -> None:
    file = desk.top / "x.vnfs"
    words: list[str | Path] = ["shell", file, "--at", desk.at, "--pubkey", pub(), "--key", built.author_key()]
    for number in range(2):
        desk.good(*words, "--", "/bin/busybox", "touch", f"/etc/{number}")
    said = desk.good(*words, "--flatten", "--", "/bin/busybox", "rm", "/etc/0")
    assert "3 edit layers became 1" in said
    assert len([layer for layer in manifest(file).layers if "edit" in layer.path]) == 1
    desk.good("mount", file, "--at", desk.at, "--pubkey", pub())
    assert (desk.at / "etc/1").exists() and not (desk.at / "etc/0").exists()
    desk.good("close", file)


def test_an_edited_file_is_imported_like_any_other(site: EditSite) -> None:
    file = site.top / "x.vnfs"
    site.good("shell", file, "--at", site.at, "--key", built.author_key(), "--", "/bin/busybox", "touch", "/etc/new")
    site.good("vnfs", "import", file, "--as", "second")
    site.good("vnfs", "verify", "second")
    site.good("mount", "second", "--at", site.at)
    assert (site.at / "etc/new").exists()
    site.good("close", "second")


def test_as_an_ordinary_user_it_is_said_that_root_is_needed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for path, name in ((built.capsule(built.BUSYBOX), "x.vnfs"), (Path(pub()), "a.pub")):
        shutil.copy(path, home / name)
        (home / name).chmod(0o644)
    program: list[str | Path] = [
        sys.executable,
        "-c",
        "from capsulekit.cli.main import entry; entry()",
        "--state-dir",
        home / "var",
    ]
    done = as_others.run(home, *program, "mount", "./x.vnfs", "--at", home / "mine", "--pubkey", "a.pub", subids=False)
    assert done.returncode == 1 and "only root can mount a capsule" in done.stderr
    assert sorted(path.name for path in home.iterdir()) == ["a.pub", "x.vnfs"]
