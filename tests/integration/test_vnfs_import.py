"""Importing a capsule: only what a trusted author signed, all of it or nothing, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_capsule import AUTHOR, CONTENT, STRANGER, layer, manifest, small_capsule

from capsulekit.errors import CapsulekitError, TrustError, UsageError
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner.registry.registry import Registry
from provisioner.vnfs.store import VnfsStore

PROGRAM = shutil.which("capsulekit") or str(Path(__file__).parents[2] / ".venv/bin/capsulekit")
NAME = "tiny-1.0.amd64"
SECRET = {**CONTENT, "layers/50-site.squashfs": b"a password hash", "layers/50-site.acl": b"site"}


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    """A site that trusts AUTHOR; its settings are all defaults."""
    made = SitePaths(tmp_path / "etc", tmp_path / "var")
    made.state.mkdir()
    trust(made)
    (made.config / "site.toml").write_text("")
    Registry(made.state / "registry.db").close()
    return made


@pytest.fixture
def capsule(tmp_path: Path) -> Path:
    small_capsule(tmp_path / "t.vnfs")
    return tmp_path / "t.vnfs"


def trust(paths: SitePaths) -> None:
    pub = paths.config.parent / "author.pub"
    pub.write_text(AUTHOR.public.file_text)
    Keyring(paths.trust).add(pub)


def store(paths: SitePaths) -> VnfsStore:
    return VnfsStore(paths, Registry(paths.state / "registry.db"))


def stored(paths: SitePaths) -> list[str]:
    """Everything the store holds, but its lock."""
    found = [p for top in ("blobs", "vnfs") for p in (paths.state / top).rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(paths.state)) for p in found if p.name != ".lock")


def kit(paths: SitePaths, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    where = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
    return subprocess.run(
        [PROGRAM, *where, *map(str, argv)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def with_secret(out: Path, **changes: object) -> str:
    layers = (
        layer("layers/50-site.squashfs", SECRET, private=True, acl="layers/50-site.acl"),
        *manifest().layers,
    )
    return small_capsule(out, SECRET, layers=layers, **changes)


def test_an_imported_capsule_is_all_there(paths: SitePaths, capsule: Path) -> None:
    vnfs = store(paths)
    row = vnfs.import_file(capsule)
    assert (row.name, row.version, row.arch, row.private) == (NAME, "1.0", "amd64", False)
    assert (row.key_id, row.public_key) == (AUTHOR.public.id, AUTHOR.public.text)
    assert row.identity == sha256_file(vnfs.sums(NAME))
    assert vnfs.list() == [row] == [vnfs.get(NAME)] == [vnfs.get("tiny")]
    assert vnfs.manifest(NAME) == manifest()
    assert {m.name: vnfs.blob(m.sha256).read_bytes() for m in vnfs.members(NAME)} == {
        **CONTENT,
        "capsule.toml": manifest().dumps(),
    }
    assert sorted(p.name for p in vnfs.folder(NAME).iterdir()) == ["SHA256SUMS", "SHA256SUMS.minisig", "capsule.toml"]


def test_private_layers_and_their_acls_are_readable_by_root_alone(paths: SitePaths, tmp_path: Path) -> None:
    with_secret(tmp_path / "s.vnfs")
    vnfs = store(paths)
    old = os.umask(0)
    try:
        assert vnfs.import_file(tmp_path / "s.vnfs").private
    finally:
        os.umask(old)
    modes = {m.name: (m.private, vnfs.blob(m.sha256).stat().st_mode & 0o777) for m in vnfs.members(NAME)}
    private = {name for name, got in modes.items() if got == (True, 0o600)}
    assert private == {"layers/50-site.squashfs", "layers/50-site.acl"}
    assert all(got == (False, 0o644) for name, got in modes.items() if name not in private)


def test_importing_twice_says_so_and_changes_nothing(paths: SitePaths, capsule: Path) -> None:
    first, again = kit(paths, "vnfs", "import", capsule), kit(paths, "vnfs", "import", capsule)
    assert first.stdout.startswith(f"{NAME} imported (identity=")
    assert (again.returncode, again.stdout.split(" (")[0]) == (0, f"{NAME} is installed already: nothing to do")
    assert kit(paths, "vnfs", "list").stdout == f"{NAME}\n"


def test_importing_again_repairs_the_store(paths: SitePaths, capsule: Path) -> None:
    vnfs = store(paths)
    row = vnfs.import_file(capsule)
    before = stored(paths)
    kernel = vnfs.blob(sha256_bytes(CONTENT["boot/vmlinuz"]))
    kernel.write_bytes(b"rotten")
    vnfs.blob(sha256_bytes(CONTENT["boot/initrd.img"])).unlink()
    vnfs.sums(NAME).unlink()
    assert vnfs.import_file(capsule) == row
    assert stored(paths) == before
    assert kernel.read_bytes() == CONTENT["boot/vmlinuz"]


def test_another_capsule_of_the_same_name_needs_another_name(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    vnfs = store(paths)
    first = vnfs.import_file(capsule)
    small_capsule(tmp_path / "o.vnfs", cmdline="other")
    before = stored(paths)
    with pytest.raises(CapsulekitError, match=r"another capsule is installed as tiny-1\.0\.amd64") as caught:
        vnfs.import_file(tmp_path / "o.vnfs")
    assert "--as" in (caught.value.hint or "")
    assert stored(paths) == before
    second = vnfs.import_file(tmp_path / "o.vnfs", as_name="other")
    assert vnfs.list() == [second, first]
    for bad in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(UsageError):
            vnfs.import_file(capsule, as_name=bad)


def test_two_capsules_share_the_blobs_that_they_share(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    vnfs = store(paths)
    vnfs.import_file(capsule)
    rootfs = vnfs.blob(sha256_bytes(CONTENT["layers/rootfs.squashfs"]))
    inode, before = rootfs.stat().st_ino, len(stored(paths))
    with_secret(tmp_path / "s.vnfs", version="2.0")
    vnfs.import_file(tmp_path / "s.vnfs")
    assert rootfs.stat().st_ino == inode
    # Its manifest, its private layer, the ACLs of that, and the three files of vnfs/NAME.
    assert len(stored(paths)) == before + 3 + 3


def test_an_unknown_key_is_refused_with_status_3_and_leaves_nothing(paths: SitePaths, tmp_path: Path) -> None:
    small_capsule(tmp_path / "x.vnfs", signer=STRANGER)
    done = kit(paths, "vnfs", "import", tmp_path / "x.vnfs")
    assert (done.returncode, done.stdout, stored(paths)) == (3, "", [])
    assert f"signed by key {STRANGER.public.id}, which is not trusted here" in done.stderr
    assert kit(paths, "vnfs", "list").stdout == ""


def test_a_revoked_key_is_refused_and_so_is_everything_where_nobody_is_trusted(paths: SitePaths, capsule: Path) -> None:
    Keyring(paths.trust).revoke(AUTHOR.public.id)
    with pytest.raises(TrustError, match="trusts no author"):
        store(paths).import_file(capsule)
    other = capsule.parent / "other.pub"
    other.write_text(STRANGER.public.file_text)
    Keyring(paths.trust).add(other)
    with pytest.raises(TrustError, match="was revoked here"):
        store(paths).import_file(capsule)
    assert stored(paths) == []


def test_a_damaged_capsule_leaves_nothing(paths: SitePaths, capsule: Path) -> None:
    data = bytearray(capsule.read_bytes())
    data[data.index(b"rootfsrootfs")] ^= 1
    capsule.write_bytes(data)
    with pytest.raises(TrustError, match=r"wrong digest of layers/rootfs\.squashfs"):
        store(paths).import_file(capsule)
    assert stored(paths) == []


def test_a_file_that_changes_after_it_was_verified_leaves_nothing(
    paths: SitePaths, capsule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(capsule.read_bytes())
    data[data.index(b"rootfsrootfs")] ^= 1
    known = VnfsStore._known
    monkeypatch.setattr(VnfsStore, "_known", lambda self, row: (capsule.write_bytes(data), known(self, row))[1])
    with pytest.raises(TrustError, match=r"layers/rootfs\.squashfs changed while it was imported"):
        store(paths).import_file(capsule)
    assert stored(paths) == []


def test_a_dry_run_verifies_and_changes_nothing(paths: SitePaths, capsule: Path) -> None:
    done = kit(paths, "vnfs", "import", "--dry-run", capsule)
    assert (done.returncode, done.stdout.split(" (")[0]) == (0, f"{NAME} would be imported")
    assert stored(paths) == []
    assert json.loads(kit(paths, "vnfs", "list", "--json").stdout) == []


def test_a_site_that_was_never_initialised_says_so(tmp_path: Path, capsule: Path) -> None:
    done = kit(SitePaths(tmp_path / "no", tmp_path / "none"), "vnfs", "import", capsule)
    assert done.returncode == 1 and "never initialised" in done.stderr


# The import runs in a process of its own that kills itself, with no chance to clean up, at its N-th durable write.
KILLED = """
import os, signal, sys
from pathlib import Path
from capsulekit.sitepaths import SitePaths
from provisioner.registry.registry import Registry
from provisioner.vnfs.store import VnfsStore
config, state, capsule, at = sys.argv[1:]
left, sync = int(at), os.fsync
def fsync(fd):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(fd)
registry = Registry(Path(state) / "registry.db")
os.fsync = fsync
VnfsStore(SitePaths(Path(config), Path(state)), registry).import_file(Path(capsule))
"""


@pytest.mark.long
def test_an_import_killed_at_any_write_shows_nothing_and_can_be_done_again(paths: SitePaths, capsule: Path) -> None:
    """Walk through every write, each time on a fresh store, until one run gets to its end."""
    killed = 0
    while True:
        argv = [sys.executable, "-c", KILLED, paths.config, paths.state, capsule, str(killed)]
        done = subprocess.run(argv, capture_output=True, check=False)
        registry = Registry(paths.state / "registry.db")
        vnfs = VnfsStore(paths, registry)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert vnfs.list() == []
        # What lies under a digest is whole, so the next import may keep it.
        assert all(sha256_file(blob) == blob.name for blob in (paths.state / "blobs").glob("??/[0-9a-f]*"))
        vnfs.import_file(capsule)
        assert len(vnfs.members(NAME)) == len(CONTENT) + 1
        assert not [name for name in stored(paths) if name.endswith(".part")]
        registry.close()
        shutil.rmtree(paths.state)
        paths.state.mkdir()
        killed += 1
    assert [row.name for row in vnfs.list()] == [NAME]
    # Two for every blob and for every file of vnfs/NAME: its data and its name.
    assert killed >= 2 * (len(CONTENT) + 1 + 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(paths: SitePaths, tmp_path: Path) -> None:
    content = {**CONTENT, "layers/rootfs.squashfs": bytes(2 << 20)}
    layers = (
        layer("layers/modules.squashfs", content),
        layer("layers/rootfs.squashfs", content, acl="layers/rootfs.acl"),
    )
    small_capsule(tmp_path / "big.vnfs", content, layers=layers)
    (paths.state / "blobs").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", paths.state / "blobs"], check=True)
    try:
        done = kit(paths, "vnfs", "import", tmp_path / "big.vnfs")
        assert done.returncode == 1
        assert done.stderr.startswith(f"ERROR: can't import {NAME}: No space left on device")
        assert done.stderr.count("\n") == 1
        assert stored(paths) == []
    finally:
        subprocess.run(["umount", paths.state / "blobs"], check=True)
    assert kit(paths, "vnfs", "list").stdout == ""


def test_a_hybrid_layer_is_kept_and_the_admin_is_told_how_nodes_get_it(paths: SitePaths, tmp_path: Path) -> None:
    content = {**CONTENT, "layers/hybrid.squashfs": b"shared" * 500_000}
    small_capsule(tmp_path / "h.vnfs", content)
    done = kit(paths, "vnfs", "import", tmp_path / "h.vnfs")
    assert done.returncode == 0, done.stderr
    said = "3.0 MB of tiny-1.0.amd64 are in its hybrid layer, which nodes mount by NFS"
    assert said in done.stdout
    settings = paths.config / "site.toml"
    settings.write_text(settings.read_text() + '\nnfs = "off"\n')
    again = kit(paths, "vnfs", "import", tmp_path / "h.vnfs")
    assert again.stderr.startswith(f"WARNING: {said}, and this master can't export it yet")
    assert store(paths).blob(sha256_bytes(content["layers/hybrid.squashfs"])).exists()
