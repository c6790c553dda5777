"""Exporting, cloning, deleting, listing and verifying what is installed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from asking_capsule import NAME, answers_file, asking_capsule, kit, set_vnfs, store_of, stored, trusting_site
from small_capsule import AUTHOR, CONTENT, STRANGER, layer, manifest, small_capsule

from capsulekit.capsule import layout, tar
from capsulekit.files import sha256_bytes
from capsulekit.sitepaths import SitePaths
from capsulekit.trust import minisign
from capsulekit.trust.keyring import Keyring


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return trusting_site(tmp_path)


@pytest.fixture
def capsule(paths: SitePaths, tmp_path: Path) -> Path:
    """Installed."""
    small_capsule(tmp_path / "t.vnfs")
    assert kit(paths, "vnfs", "import", tmp_path / "t.vnfs").status == 0
    return tmp_path / "t.vnfs"


# --- export


def test_what_was_imported_goes_out_byte_for_byte(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = kit(paths, "vnfs", "export", "tiny", tmp_path / "here")
    assert (done.status, done.err) == (0, "")
    out = tmp_path / "here" / f"{NAME}.vnfs"
    assert out.read_bytes() == capsule.read_bytes() and out.stat().st_mode & 0o777 == 0o644
    (tmp_path / "author.pub").write_text(AUTHOR.public.file_text)
    subprocess.run(["tar", "xf", out, "-C", tmp_path / "here"], check=True)
    argv = ["minisign", "-Vm", "SHA256SUMS", "-p", tmp_path / "author.pub"]
    subprocess.run(argv, cwd=tmp_path / "here", check=True, capture_output=True)
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "here", check=True, capture_output=True)


def test_cosignatures_are_kept(paths: SitePaths, tmp_path: Path) -> None:
    """They are not listed, so they are no part of the identity, and still part of the file."""
    small_capsule(tmp_path / "a.vnfs")
    data = (tmp_path / "a.vnfs").read_bytes()
    unpacked = tmp_path / "u"
    unpacked.mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.vnfs", "-C", unpacked], check=True)
    sums = (unpacked / "SHA256SUMS").read_bytes()
    text = minisign.sign(sums, STRANGER, "seen").encode()
    head = tar.header(f"SHA256SUMS.{STRANGER.public.id}.minisig", len(text), 1700000000)
    at = data.index(b"capsule.toml\0")
    body = data[:at] + head + tar.padded(text) + data[at:].rstrip(b"\0")
    body += bytes(-len(body) % 512)
    (tmp_path / "c.vnfs").write_bytes(body + tar.ending(len(body)))
    assert kit(paths, "vnfs", "import", tmp_path / "c.vnfs").status == 0
    assert kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs").status == 0
    assert (tmp_path / "out.vnfs").read_bytes() == (tmp_path / "c.vnfs").read_bytes()
    assert layout.cosigner(f"SHA256SUMS.{STRANGER.public.id}.minisig") == STRANGER.public.id


def test_an_export_that_cannot_be_leaves_nothing(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    out = tmp_path / "o" / "out.vnfs"
    cases: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("nothing", out), 1, "no capsule 'nothing' is installed"),
        ((NAME, out), 1, "there is no folder"),
        ((NAME, capsule), 1, "is there already"),
        ((NAME, "/dev/null"), 1, "is no file"),
        ((NAME, capsule, "--without-privates"), 2, "No such option"),
        ((), 2, "Missing argument"),
    ]
    before = capsule.read_bytes()
    for words, status, told in cases:
        done = kit(paths, "vnfs", "export", *words)
        assert (done.status, done.out) == (status, ""), words
        assert told in done.err
    assert capsule.read_bytes() == before and not out.parent.exists()
    assert kit(paths, "vnfs", "export", NAME, tmp_path / "new.vnfs", "--dry-run").status == 0
    assert not (tmp_path / "new.vnfs").exists()
    assert kit(paths, "vnfs", "export", NAME, capsule, "--over").status == 0


def test_a_damaged_store_is_not_exported(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    store = store_of(paths)
    kernel = store.blob(sha256_bytes(CONTENT["boot/vmlinuz"]))
    kernel.write_bytes(b"x" * len(CONTENT["boot/vmlinuz"]))
    done = kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs")
    assert done.status == 3 and "boot/vmlinuz of tiny-1.0.amd64 is not what was signed" in done.err
    kernel.unlink()
    done = kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs")
    assert done.status == 1 and "boot/vmlinuz of tiny-1.0.amd64 is gone" in done.err
    assert [p.name for p in tmp_path.glob("*out.vnfs*")] == []


def test_private_layers_that_came_with_it_go_out_with_it(paths: SitePaths, tmp_path: Path) -> None:
    content = {**CONTENT, "layers/50-site.squashfs": b"a password hash"}
    layers = (layer("layers/50-site.squashfs", content, private=True), *manifest().layers)
    small_capsule(tmp_path / "p.vnfs", content, layers=layers)
    assert kit(paths, "vnfs", "import", tmp_path / "p.vnfs").status == 0
    done = kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs", "--without-private")
    assert done.status == 1 and "can't be left out" in done.err
    done = kit(paths, "vnfs", "export", NAME, tmp_path / "out.vnfs")
    assert done.status == 0 and "holds private layers" in done.err
    assert (tmp_path / "out.vnfs").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out.vnfs").read_bytes() == (tmp_path / "p.vnfs").read_bytes()


# --- verify


def test_verify_names_every_member_that_does_not_hold(paths: SitePaths, capsule: Path) -> None:
    good = kit(paths, "vnfs", "verify", "tiny", capsule)
    assert good.status == 0 and good.out.count(f"OK {NAME} identity=") == 2
    some = kit(paths, "vnfs", "verify", "nope", "tiny", "other")
    assert (some.status, some.out.count(f"OK {NAME} identity=")) == (1, 1)
    assert some.err.startswith("ERROR: no capsule 'nope' is installed\n  no capsule 'other' is installed\n")
    store = store_of(paths)
    store.blob(sha256_bytes(CONTENT["boot/vmlinuz"])).write_bytes(b"rotten")
    store.blob(sha256_bytes(CONTENT["boot/initrd.img"])).unlink()
    done = kit(paths, "vnfs", "verify", NAME)
    assert done.status == 3
    assert "boot/vmlinuz is not what was signed" in done.err and "boot/initrd.img is gone" in done.err
    told = json.loads(kit(paths, "vnfs", "verify", NAME, "--json").out)["checked"][0]
    assert len(told["wrong"]) == 2
    assert kit(paths, "vnfs", "import", capsule).status == 0
    assert kit(paths, "vnfs", "verify", NAME).status == 0
    store.sums(NAME).write_bytes(b"")
    assert kit(paths, "vnfs", "verify", NAME).status == 3


def test_verify_looks_at_the_manifest_that_plans_are_made_from(paths: SitePaths, capsule: Path) -> None:
    """It lies beside the sums, and among the blobs once more: a byte that changed in either is found."""
    copy = store_of(paths).folder(NAME) / "capsule.toml"
    copy.write_bytes(copy.read_bytes().replace(b'cmdline = "', b'cmdline = "single '))
    done = kit(paths, "vnfs", "verify", NAME)
    assert done.status == 3 and "capsule.toml is not what was signed" in done.err
    assert kit(paths, "vnfs", "import", capsule).status == 0
    assert kit(paths, "vnfs", "verify", NAME).status == 0


def test_verify_asks_todays_keyring(paths: SitePaths, capsule: Path) -> None:
    Keyring(paths.trust).revoke(AUTHOR.public.id)
    done = kit(paths, "vnfs", "verify", NAME)
    assert done.status == 3 and f"signed by key {AUTHOR.public.id}, which was revoked here" in done.err


def test_verify_of_what_is_none_is_one_line(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.vnfs").write_bytes(capsule.read_bytes()[:-512])
    for words, status in (
        (("nothing",), 1), ((tmp_path / "no.vnfs",), 1), ((tmp_path / "bad.vnfs",), 3), ((), 2), ((tmp_path,), 1),
    ):  # fmt: skip
        done = kit(paths, "vnfs", "verify", *words)
        assert done.status == status and done.err.startswith(("ERROR", "Usage")), words


# --- clone and list


def test_a_clone_shares_every_blob_and_no_node_changes(paths: SitePaths, capsule: Path) -> None:
    set_vnfs(paths, NAME)
    blobs = stored(paths, "blobs")
    assert kit(paths, "vnfs", "clone", "tiny", "copy", "--dry-run").out == "tiny would be cloned as copy\n"
    assert kit(paths, "vnfs", "list").out == f"{NAME}\n"
    assert kit(paths, "vnfs", "clone", "tiny", "copy").out == "tiny has been cloned as copy\n"
    assert stored(paths, "blobs") == blobs
    done = kit(paths, "vnfs", "list", "nope", "tiny", "other")
    assert (done.status, done.out) == (1, f"{NAME}\n")
    assert done.err.startswith("ERROR: no capsule 'nope' is installed\n  no capsule 'other' is installed\n")
    rows = {row["name"]: row for row in json.loads(kit(paths, "vnfs", "list", "--json").out)}
    assert rows["copy"]["identity"] == rows[NAME]["identity"] and rows["copy"]["size"] == rows[NAME]["size"] > 0
    assert rows[NAME]["nodes"] == ["n0000"] and rows["copy"]["nodes"] == []
    assert kit(paths, "vnfs", "verify", "copy").status == 0
    text = kit(paths, "vnfs", "list", "-v").out.splitlines()
    assert text[0].split()[:3] == ["VNFS", "Version", "Key"] and text[0].split()[-3:] == ["Size", "Nodes", "Identity"]
    assert [line.split()[0] for line in text[1:]] == ["copy", NAME]


def test_a_clone_of_a_configured_capsule_is_configured_by_itself(paths: SitePaths, tmp_path: Path) -> None:
    asking_capsule(tmp_path / "q.vnfs")
    answers = answers_file(tmp_path)
    assert kit(paths, "vnfs", "import", tmp_path / "q.vnfs", "-y", "--answers", answers).status == 0
    assert kit(paths, "vnfs", "clone", NAME, "copy").status == 0
    store = store_of(paths)
    before = store.get(NAME)
    assert kit(paths, "vnfs", "configure", "copy", "-y", "--answers", answers_file(tmp_path, 'ntp = "x"')).status == 0
    assert store.get(NAME) == before and store.get("copy").identity != before.identity
    assert kit(paths, "vnfs", "delete", NAME, "-y").status == 0
    assert kit(paths, "vnfs", "verify", "copy").status == 0
    assert kit(paths, "vnfs", "export", "copy", tmp_path / "out.vnfs", "--without-private").status == 0
    assert (tmp_path / "out.vnfs").read_bytes() == (tmp_path / "q.vnfs").read_bytes()


@pytest.mark.parametrize("new", ["", "../x", "a/b", ".x", "x" * 200, "a b", "a\nb"])
def test_a_clone_needs_a_name_that_can_be_one(paths: SitePaths, capsule: Path, new: str) -> None:
    before = stored(paths)
    done = kit(paths, "vnfs", "clone", NAME, new)
    assert done.status == 2 and "a capsule can't be called" in done.err
    assert stored(paths) == before


def test_a_clone_needs_a_free_name_and_a_whole_source(paths: SitePaths, capsule: Path) -> None:
    for words, told in (
        (("nothing", "x"), "no capsule 'nothing'"),
        ((NAME, NAME), "installed as tiny-1.0.amd64 already"),
    ):
        done = kit(paths, "vnfs", "clone", *words)
        assert done.status == 1 and told in done.err
    store_of(paths).blob(sha256_bytes(CONTENT["boot/vmlinuz"])).unlink()
    done = kit(paths, "vnfs", "clone", NAME, "copy")
    assert done.status == 1 and "boot/vmlinuz" in done.err
    assert kit(paths, "vnfs", "list", "nothing").status == 1


# --- delete


def test_a_deleted_capsule_frees_what_nobody_else_has(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    small_capsule(tmp_path / "two.vnfs", {**CONTENT, "boot/vmlinuz": b"another kernel"}, version="2.0")
    assert kit(paths, "vnfs", "import", tmp_path / "two.vnfs").status == 0
    asked = kit(paths, "vnfs", "delete", NAME, "-n")
    assert asked.status == 1 and f"To be deleted: {NAME} (" in asked.err
    assert kit(paths, "vnfs", "delete", NAME, "--dry-run").out.startswith(f"Would be deleted: {NAME}")
    assert kit(paths, "vnfs", "list").out == f"{NAME}\ntiny-2.0.amd64\n"
    done = kit(paths, "vnfs", "delete", NAME, "-y")
    assert (done.status, done.out.splitlines()[0]) == (0, f"{NAME} has been deleted")
    store = store_of(paths)
    assert not store.blob(sha256_bytes(CONTENT["boot/vmlinuz"])).exists()
    assert kit(paths, "vnfs", "verify", "tiny").status == 0
    assert not store.home(NAME).exists()
    assert kit(paths, "vnfs", "delete", "tiny", "-y", "-q").out == ""
    assert stored(paths) == []


def test_a_capsule_that_nodes_boot_is_only_deleted_by_force(paths: SitePaths, capsule: Path) -> None:
    set_vnfs(paths, NAME)
    before = stored(paths)
    for extra in ((), ("-y",), ("--dry-run",)):
        done = kit(paths, "vnfs", "delete", "tiny", *extra)
        assert done.status == 1 and f"{NAME} is booted by n0000" in done.err and "--force" in done.err
    assert stored(paths) == before
    assert kit(paths, "vnfs", "delete", "tiny", "--force", "-y").status == 0
    assert stored(paths) == []


def test_what_new_nodes_get_is_only_deleted_by_force(paths: SitePaths, capsule: Path) -> None:
    (paths.config / "defaults.toml").write_text(f'vnfs = "{NAME}"\n')
    done = kit(paths, "vnfs", "delete", NAME, "-y")
    assert done.status == 1 and "is what new nodes get" in done.err


def test_a_capsule_that_is_meant_by_its_short_name_is_only_deleted_by_force(paths: SitePaths, capsule: Path) -> None:
    """Defaults, and nodes that were added before it was installed, may say NAME alone."""
    (paths.config / "defaults.toml").write_text('vnfs = "tiny"\n')
    done = kit(paths, "vnfs", "delete", NAME, "-y")
    assert done.status == 1 and "is what new nodes get" in done.err
    assert kit(paths, "vnfs", "delete", NAME, "-y", "--force").status == 0
    assert kit(paths, "node", "add", "02:00:00:00:00:05").status == 0
    assert kit(paths, "vnfs", "import", capsule).status == 0
    (paths.config / "defaults.toml").write_text("")
    done = kit(paths, "vnfs", "delete", NAME, "-y")
    assert done.status == 1 and f"{NAME} is booted by n0000" in done.err


def test_what_stays_activated_for_a_deleted_capsule_is_said(paths: SitePaths, capsule: Path) -> None:
    role = f"init/vnfs/{NAME}"
    assert kit(paths, "module", "activate", "hostname", role, "init/all").status == 0
    done = kit(paths, "vnfs", "delete", NAME, "-y")
    assert done.status == 0
    assert f"module 'hostname' stays activated in {role}" in done.err and done.err.count("WARNING") == 1


def test_a_delete_with_one_wrong_name_deletes_none(paths: SitePaths, capsule: Path) -> None:
    before = stored(paths)
    for words in ((NAME, "nothing"), ("nothing", NAME), ("../..",), ("",)):
        assert kit(paths, "vnfs", "delete", *words, "-y").status == 1
    assert kit(paths, "vnfs", "delete", "-y").status == 2
    assert stored(paths) == before and kit(paths, "vnfs", "list").out == f"{NAME}\n"


def test_where_another_capsules_sums_are_damaged_no_blob_is_freed(paths: SitePaths, capsule: Path) -> None:
    assert kit(paths, "vnfs", "clone", NAME, "copy").status == 0
    blobs = stored(paths, "blobs")
    store_of(paths).sums("copy").write_bytes(b"damaged")
    assert kit(paths, "vnfs", "delete", NAME, "-y").status == 0
    assert stored(paths, "blobs") == blobs


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(paths: SitePaths, tmp_path: Path) -> None:
    small_capsule(tmp_path / "big.vnfs", {**CONTENT, "layers/hybrid.squashfs": bytes(2 << 20)})
    assert kit(paths, "vnfs", "import", tmp_path / "big.vnfs").status == 0
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", full], check=True)
    try:
        done = kit(paths, "vnfs", "export", NAME, full)
        assert done.status == 1 and "No space left on device" in done.err
        assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", full], check=True)
