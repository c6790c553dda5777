"""Building for real: the archive, mmdebstrap and squashfs; what comes out, and what is left when it goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import built
import pytest
from building import (
    PROGRAM,
    build_words,
    cold_cache,
    lock_of,
    mounts,
    nothing_left,
    ok,
    refused,
    running,
    sh,
    unpacked,
)

from capsulekit.apt import mmdebstrap
from capsulekit.apt.solver import AptRoot
from capsulekit.cache import default_cache_dir
from capsulekit.capsule.read import open_capsule
from capsulekit.errors import TrustError
from capsulekit.lock.model import load

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to build a root file system"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
]
OVERLAY = "redirect_dir=off,metacopy=off,index=off,xino=off"


@pytest.fixture(scope="module")
def small() -> Path:
    return built.capsule(built.BUSYBOX)


@pytest.fixture(scope="module")
def compute() -> Path:
    return built.capsule(built.COMPUTE)


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    return cold_cache(tmp_path / "cold")


@contextmanager
def mounted(capsule: Path, folder: Path) -> Iterator[Path]:
    """The capsule's layers as a node stacks them, read-only."""
    parts = unpacked(capsule, folder / "parts")
    layers = []
    try:
        for name in ("modules", "rootfs"):
            (folder / name).mkdir()
            ok("mount", "-o", "loop,ro", parts / f"layers/{name}.squashfs", folder / name)
            layers.append(folder / name)
        (folder / "all").mkdir()
        lower = ":".join(map(str, layers))
        ok("mount", "-t", "overlay", "none", "-o", f"ro,lowerdir={lower},{OVERLAY}", folder / "all")
        layers.append(folder / "all")
        yield folder / "all"
    finally:
        for layer in reversed(layers):
            ok("umount", layer)


# --- the same bytes everywhere


def difference(one: Path, two: Path, folder: Path) -> str:
    """Which members differ, for the message of a failed test."""
    return sh("diff", "-rq", unpacked(one, folder / "one"), unpacked(two, folder / "two")).stdout


@pytest.mark.slow
def test_without_any_route_to_the_world_the_same_bytes_are_built(small: Path, tmp_path: Path, cold: Path) -> None:
    out = tmp_path / "again.vnfs"
    words = build_words(built.BUSYBOX, out, cold, "--lock", lock_of(small, tmp_path), "--offline", "--json")
    done = sh("unshare", "--net", *words)
    assert done.returncode == 0, done.stderr
    assert not any(step["reused"] for step in json.loads(done.stdout)["steps"] if step["name"] != "fetch packages")
    assert small.read_bytes() == out.read_bytes(), difference(small, out, tmp_path)


@pytest.mark.long
def test_two_builds_of_one_recipe_at_once_are_both_right(small: Path, tmp_path: Path, cold: Path) -> None:
    lock = lock_of(small, tmp_path)
    outs = [tmp_path / f"{n}.vnfs" for n in range(2)]
    running_ = [
        subprocess.Popen(build_words(built.BUSYBOX, out, cold, "--lock", lock, "-q"), stderr=subprocess.PIPE)
        for out in outs
    ]
    for child in running_:
        _, said = child.communicate(timeout=300)
        assert child.returncode == 0, said.decode()
    for out in outs:
        assert out.read_bytes() == small.read_bytes()
        out.unlink()
    nothing_left(tmp_path, cold)


def test_a_second_build_makes_nothing_anew(small: Path, tmp_path: Path) -> None:
    words = build_words(built.BUSYBOX, tmp_path / "x.vnfs", default_cache_dir(), "--lock", lock_of(small, tmp_path))
    report = json.loads(ok(*words, "--offline", "--json"))
    reused = {step["name"] for step in report["steps"] if step["reused"]}
    assert reused == {"fetch packages", "root file system", "kernel and modules", "stage 2"}, report
    assert (tmp_path / "x.vnfs").read_bytes() == small.read_bytes()


@pytest.mark.long
def test_a_damaged_result_is_never_made_again_from_a_damaged_package(small: Path, tmp_path: Path, cold: Path) -> None:
    words = build_words(built.BUSYBOX, tmp_path / "x.vnfs", cold, "--lock", lock_of(small, tmp_path))
    ok(*words)
    (tmp_path / "x.vnfs").unlink()
    for result in ("rootfs-*/rootfs.squashfs", "install-*/root.tar"):
        with next((cold / "steps").glob(result)).open("ab") as damaged:
            damaged.write(b"x")
    digest = next(p.sha256 for p in load(tmp_path / "its.lock").sets["rootfs"] if p.name == "busybox-static")
    package = cold / "packages" / digest[:2] / f"{digest}.pkg"
    package.unlink()  # it is a link to the machine's own cache
    package.write_bytes(b"not what was signed")
    refused(sh(*words), 1, digest, "run the same command again")
    nothing_left(tmp_path, cold)
    ok(*words)
    assert (tmp_path / "x.vnfs").read_bytes() == small.read_bytes()


# --- what comes out


@pytest.mark.parametrize("name", ["small", "compute"])
def test_stock_tools_and_ours_accept_it(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    capsule: Path = request.getfixturevalue(name)
    public = built.author_key().with_suffix(".pub")
    folder = unpacked(capsule, tmp_path / "x")
    ok("minisign", "-Vm", "SHA256SUMS", "-p", public, cwd=folder)
    ok("sha256sum", "-c", "--strict", "SHA256SUMS", cwd=folder)
    assert ok(PROGRAM, "verify", capsule, "--pubkey", public).startswith("OK ")
    assert '"verified": true' in ok(PROGRAM, "inspect", capsule, "--json", "--pubkey", public)
    assert "NOT VERIFIED" not in ok(PROGRAM, "inspect", capsule, "--pubkey", public)


def test_a_merged_root_keeps_its_lib_link_under_the_modules_layer(compute: Path, tmp_path: Path) -> None:
    with mounted(compute, tmp_path) as root:
        for name in ("bin", "sbin", "lib", "lib64"):
            assert (root / name).readlink() == Path(f"usr/{name}"), name
        assert not (tmp_path / "modules/lib").exists()
        assert ok("chroot", root, "/bin/sh", "-c", "echo libc works") == "libc works\n"
        (release,) = [p.name for p in (root / "lib/modules").iterdir()]
        assert (root / "usr/lib/modules" / release / "modules.dep.bin").stat().st_size > 0
        found = ok("chroot", root, "modprobe", "-S", release, "--show-depends", "squashfs")
        assert f"/lib/modules/{release}/kernel/" in found
        assert (root / "usr/lib/x86_64-linux-gnu/libc.so.6").exists()


def test_an_unmerged_root_gets_its_modules_where_its_tools_look(small: Path, tmp_path: Path) -> None:
    with mounted(small, tmp_path) as root:
        assert not (root / "lib").is_symlink()
        (release,) = [p.name for p in (root / "lib/modules").iterdir()]
        kept = {p.name.partition(".")[0] for p in (root / "lib/modules" / release).rglob("*.ko*")}
        assert {"virtio_net", "squashfs", "overlay"} <= kept and len(kept) < 40, "only what the recipe keeps"


def attributes(path: Path) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:  # this layer holds none at all
        return []


@pytest.mark.parametrize("name", ["small", "compute"])
def test_no_layer_holds_an_overlays_own_attributes(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    parts = unpacked(request.getfixturevalue(name), tmp_path / "x")
    for layer in sorted((parts / "layers").glob("*.squashfs")):
        where = tmp_path / layer.stem
        where.mkdir()
        ok("mount", "-o", "loop,ro", layer, where)
        try:
            found = {(p, name) for p in where.rglob("*") for name in attributes(p) if ".overlay." in name}
            values = {os.getxattr(p, name, follow_symlinks=False) for p, name in found}
        finally:
            ok("umount", where)
        assert {name for _, name in found} <= {"trusted.overlay.opaque"} and values <= {b"y"}, layer


def test_the_compute_root_keeps_capabilities_owners_acls_and_no_secret(compute: Path, tmp_path: Path) -> None:
    with mounted(compute, tmp_path) as root:
        assert "cap_net_raw=ep" in ok("getcap", root / "usr/bin/ping")
        assert (root / "usr/bin/passwd").stat().st_mode & 0o4000
        assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o640 and (root / "etc/shadow").stat().st_gid == 42
        assert (root / "etc/machine-id").read_bytes() == b""
        assert not list((root / "etc/ssh").glob("ssh_host_*")) and not (root / "etc/munge/munge.key").exists()
        assert not list((root / "run").iterdir()) and not list((root / "tmp").iterdir())
        with open_capsule(compute) as opened:
            epoch = int(re.search(rb"^epoch = (\d+)", opened.read_member("capsule.toml"), re.M)[1])  # type: ignore[index]
            acls = opened.read_member("layers/rootfs.acl").decode("ascii").splitlines()
        times = ok("find", tmp_path / "rootfs", tmp_path / "modules", "-printf", "%T@\n").splitlines()
        assert {int(float(t)) for t in times} == {epoch}
        assert any(line.startswith("var/log/journal\t") for line in acls)
        for line in acls:
            path, _, entries = line.split("\t")
            assert (root / path).exists() and ok("setfacl", "--test", "-m", entries, root / path)


# --- recipes that meet a real root

EXTRACT = """[capsule]
name = "probe"
version = "1"
init = "/bin/busybox"
[distro]
name = "debian"
release = "12"
[packages]
include = ["busybox-static"]
[rootfs]
base = "extract"
[kernel]
package = "linux-image-cloud-amd64"
modules = ["loop", "squashfs", "overlay"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(EXTRACT)
    return tmp_path / "r.toml"


def extended(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- what a first-time user meets


def test_an_unknown_key_is_named_with_its_line_and_the_right_one(tmp_path: Path, recipe: Path, cold: Path) -> None:
    extended(recipe, "[packages]\ninclude", "[packages]\ninclud")
    done = sh(*build_words(recipe, tmp_path / "x.vnfs", cold))
    refused(done, 1, "r.toml:9: unknown key includ in [packages]", "did you mean include?")


def test_an_unknown_package_is_named(tmp_path: Path, recipe: Path, cold: Path) -> None:
    extended(recipe, '["busybox-static"]', '["busybox-static", "no-such-package"]')
    done = sh(*build_words(recipe, tmp_path / "x.vnfs", cold))
    refused(done, 1, "there is no package no-such-package in this release for amd64", "[packages]")
    # A name with a dot must not be taken for a pattern, nor a virtual package for some other one.
    for name in ("busybox.stati", "mail-transport-agent"):
        recipe.write_text(EXTRACT.replace('"busybox-static"', f'"{name}"'))
        refused(sh(*build_words(recipe, tmp_path / "x.vnfs", cold)), 1, f"there is no package {name}")
    nothing_left(tmp_path, cold)


def test_packages_that_exclude_each_other_are_named(tmp_path: Path, recipe: Path, cold: Path) -> None:
    extended(recipe, '["busybox-static"]', '["postfix", "exim4-daemon-light"]')
    refused(sh(*build_words(recipe, tmp_path / "x.vnfs", cold)), 1, "cannot be installed together: ", "exim4")


def test_no_network_is_said_with_the_way_out(tmp_path: Path, recipe: Path, cold: Path) -> None:
    done = sh("unshare", "--net", *build_words(recipe, tmp_path / "x.vnfs", cold))
    refused(done, 1, "the package archive cannot be reached", "check the network", "--offline")
    nothing_left(tmp_path, cold)


def test_offline_needs_a_lock_and_every_package(small: Path, tmp_path: Path, recipe: Path, cold: Path) -> None:
    refused(sh(*build_words(recipe, tmp_path / "x.vnfs", cold, "--offline")), 2, "--offline needs a lock", "--lock")
    shutil.rmtree(cold / "packages")
    words = build_words(built.BUSYBOX, tmp_path / "x.vnfs", cold, "--offline", "--lock", lock_of(small, tmp_path))
    refused(sh(*words), 1, "locked packages are not in the cache", "without --offline")
    nothing_left(tmp_path, cold)


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = sh(*build_words(recipe, tmp_path / "x.vnfs", tmp_path / "file"))
    refused(done, 1, "the cache folder", "--cache-dir")


@contextmanager
def disk(where: Path, size: str) -> Iterator[Path]:
    where.mkdir()
    ok("mount", "-t", "tmpfs", "-o", f"size={size}", "none", where)
    try:
        yield where
    finally:
        ok("umount", where)


# Room for the packages only, for the unpacked root but not its layer, and for the layers but not all scratch space.
@pytest.mark.parametrize("size", ["20m", "60m", "110m"])
def test_a_disk_that_fills_while_packing_is_one_clear_line(small: Path, tmp_path: Path, size: str) -> None:
    lock = lock_of(small, tmp_path)
    with disk(tmp_path / "disk", size) as cache:
        done = sh(*build_words(built.BUSYBOX, tmp_path / "x.vnfs", cache, "--lock", lock))
        refused(done, 1, "the disk is full", "free some space", "--cache-dir")
        assert [p.name for p in (cache / "tmp").iterdir() if p.name != ".lock"] == []
        assert not (tmp_path / "x.vnfs").exists() and running(tmp_path) == []
        # Looked at before the disk goes: a namespace that somebody else made meanwhile keeps its copy of the disk.
        assert [line.split()[1] for line in mounts(tmp_path)] == [str(cache)]


def test_a_full_disk_for_the_capsule_keeps_the_old_one(small: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "1m") as where:
        (where / "x.vnfs").write_bytes(b"the old one")
        words = build_words(built.BUSYBOX, where / "x.vnfs", default_cache_dir(), "--lock", lock_of(small, tmp_path))
        refused(sh(*words), 1, "No space left on device")
        assert [p.name for p in where.iterdir()] == ["x.vnfs"] and (where / "x.vnfs").read_bytes() == b"the old one"


def test_where_the_capsule_cannot_go_is_said_before_anything_is_built(recipe: Path, tmp_path: Path, cold: Path) -> None:
    for out, word in ((tmp_path / "none/x.vnfs", "there is no folder"), (tmp_path, "is a folder")):
        refused(sh(*build_words(recipe, out, cold)), 1, word)
    assert list((cold / "steps").iterdir() if (cold / "steps").exists() else []) == []


@pytest.mark.long
def test_a_script_of_the_recipe_that_fails_is_named(recipe: Path, tmp_path: Path, cold: Path) -> None:
    (tmp_path / "bad.sh").write_text("#!/bin/sh\necho about to fail\nexit 3\n")
    recipe.write_text(recipe.read_text() + '[scripts]\nrootfs = ["bad.sh"]\n[files."/bin/sh"]\nsource = "busybox"\n')
    shutil.copy(shutil.which("busybox") or "", tmp_path / "busybox")
    extended(recipe, 'source = "busybox"', 'source = "busybox"\nmode = "0755"')
    refused(sh(*build_words(recipe, tmp_path / "x.vnfs", cold)), 1, "the recipe's script bad.sh failed")
    nothing_left(tmp_path, cold)


@pytest.mark.long
def test_a_root_without_its_init_is_refused(recipe: Path, tmp_path: Path, cold: Path) -> None:
    extended(recipe, 'init = "/bin/busybox"\n', "")
    refused(sh(*build_words(recipe, tmp_path / "x.vnfs", cold)), 1, "the root has no /sbin/init", "systemd-sysv")
    nothing_left(tmp_path, cold)


@pytest.mark.parametrize("value", ["yesterday", "-1", "4294967296", "1e9"])
def test_a_source_date_epoch_that_is_no_time_is_wrong_usage(recipe: Path, tmp_path: Path, value: str) -> None:
    how = {"env": {**os.environ, "SOURCE_DATE_EPOCH": value}}
    done = sh(*build_words(recipe, tmp_path / "x.vnfs", default_cache_dir()), **how)
    refused(done, 2, "SOURCE_DATE_EPOCH must be seconds since 1970")


def test_an_unreadable_or_damaged_capsule_is_one_line_for_verify(small: Path, tmp_path: Path) -> None:
    public = built.author_key().with_suffix(".pub")
    refused(sh(PROGRAM, "verify", tmp_path / "none.vnfs", "--pubkey", public), 1, "none.vnfs")
    refused(sh(PROGRAM, "verify", tmp_path, "--pubkey", public), 1, str(tmp_path))
    (tmp_path / "text.vnfs").write_text("no capsule\n" * 1000)
    refused(sh(PROGRAM, "verify", tmp_path / "text.vnfs", "--pubkey", public), 3)
    whole = bytearray(small.read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "bad.vnfs").write_bytes(whole)
    refused(sh(PROGRAM, "verify", tmp_path / "bad.vnfs", "--pubkey", public), 3)


def test_an_archive_signed_by_someone_else_is_a_matter_of_trust(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "none.gpg").write_bytes(b"")
    sources = mmdebstrap.default_sources("bookworm", "amd64", scratch)
    apt = AptRoot(tmp_path / "apt", "amd64", sources, tmp_path / "none.gpg")
    with pytest.raises(TrustError, match="the package archive's index does not hold: ") as caught:
        apt.update()
    assert "\n" not in caught.value.message
