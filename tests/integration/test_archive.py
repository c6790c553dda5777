"""Mirrors that misbehave, and locks that outlive what a mirror holds: real apt, an archive made on the spot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import built
import pytest
from apt_archive import Archive

from capsulekit.lock.model import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap, for apt's own default sources"),
    pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg, to sign an archive of its own"),
]
PROGRAM = Path(sys.executable).with_name("capsulekit")
RECIPE = """[capsule]
name = "probe"
version = "1"
init = "/bin/tool"
[distro]
name = "debian"
release = "12"
[packages]
include = ["tool"]
[rootfs]
base = "extract"
[kernel]
package = "linux-image-test"
"""


class Site:
    """An author's folder with a recipe, a cache, and an archive to take packages from."""

    def __init__(self, where: Path) -> None:
        self.where, self.archive = where, Archive(where)
        self.recipe, self.lock, self.cache = where / "r.toml", where / "r.lock", where / "cache"
        self.recipe.write_text(RECIPE)
        self.archive.package("tool", "1.0", {"/bin/tool!": b"one"}, Depends="libtool1")
        self.archive.package("libtool1", "1.0", {"/lib/libtool": b"one" * 5000})
        for name in ("linux-image-test", "busybox-static", "acl"):
            self.archive.package(name, "1.0", {f"/usr/share/{name}": b"x"})
        self.archive.publish()

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "CAPSULEKIT_REPOS_DIR": str(self.archive.repos)}
        argv = [PROGRAM, *words, "--cache-dir", self.cache]
        return subprocess.run(
            [str(w) for w in argv], env=env, capture_output=True, text=True, check=False, timeout=120
        )  # fmt: skip

    def locked(self, *words: str | Path) -> str:
        done = self.run("lock", self.recipe, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def build(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("build", self.recipe, "-o", self.where / "x.vnfs", "--key", built.author_key(), *words)

    def versions(self) -> dict[str, str]:
        return {p.name: p.version for packages in load(self.lock).sets.values() for p in packages}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.archive.stop()


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 2 and lines[0].startswith("ERROR: ") and done.stdout == "", done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def clean(site: Site) -> None:
    """Nothing half-made is left, and every package the cache holds is what its name says."""
    assert not (site.where / "x.vnfs").exists()
    assert [p.name for p in (site.cache / "tmp").iterdir() if p.name != ".lock"] == []
    for package in (site.cache / "packages").rglob("*.pkg"):
        done = subprocess.run(["sha256sum", package], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == package.stem


# --- the index


def test_a_damaged_signature_on_the_index_is_refused(site: Site) -> None:
    index = site.archive.folder / "dists/bookworm/InRelease"
    index.write_text(index.read_text().replace("Origin: test", "Origin: tess"))
    refused(site.run("lock", site.recipe), 3, "the package archive's index does not hold", "BADSIG")
    assert not site.lock.exists()


def test_an_index_signed_by_another_key_is_refused(site: Site) -> None:
    site.archive.publish(key=site.archive.new_key("stranger"))
    refused(site.run("lock", site.recipe), 3, "the package archive's index does not hold", "NO_PUBKEY")


def test_an_expired_key_is_refused(site: Site) -> None:
    key = site.archive.new_key("old", "20200101T000000", "20200201T000000")
    site.archive.publish_key(key)
    site.archive.publish(key=f"{key}!", faked="20200115T000000")
    refused(site.run("lock", site.recipe), 3, "the package archive's index does not hold", "EXPKEYSIG")


def test_an_index_that_has_expired_is_refused(site: Site) -> None:
    site.archive.publish(Valid_Until="Sat, 01 Jan 2022 00:00:00 UTC")
    refused(site.run("lock", site.recipe), 3, "the package archive's index does not hold", "expired")


def test_a_list_of_packages_that_is_not_the_signed_one_is_refused(site: Site) -> None:
    for name in ("Packages", "Packages.gz"):
        path = site.archive.folder / "dists/bookworm/main/binary-amd64" / name
        path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    refused(site.run("lock", site.recipe), 3, "the package archive's index does not hold")


def test_an_archive_without_a_signature_is_refused(site: Site) -> None:
    (site.archive.folder / "dists/bookworm/InRelease").unlink()
    done = site.run("lock", site.recipe)
    refused(done, 3, "the package archive's index does not hold", "Release file")
    assert not site.lock.exists()


# --- packages


def test_a_package_changed_behind_its_index_is_refused_by_name(site: Site) -> None:
    deb = site.archive.folder / "pool/libtool1_1.0_amd64.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"x")
    refused(site.build(), 3, "the mirror serves another libtool1 than its signed index says")
    clean(site)


def test_a_package_changed_under_its_name_and_version_is_refused_by_its_lock(site: Site) -> None:
    site.locked()
    site.archive.package("libtool1", "1.0", {"/lib/libtool": b"two" * 5000})
    site.archive.publish()
    refused(site.build("--locked"), 3, "libtool1", "the lock says")
    clean(site)


@pytest.mark.long
def test_a_truncated_download_is_refused_by_name(site: Site) -> None:
    site.archive.mirror.cut.add("libtool1_1.0_amd64.deb")
    done = site.build()
    assert done.returncode in (1, 3), done.stderr
    assert "libtool1" in done.stderr and len(done.stderr.splitlines()) <= 2, done.stderr
    clean(site)
    site.archive.mirror.cut.clear()
    done = site.build()
    assert "libtool1" not in done.stderr, "once the mirror is well, the package is fetched"


def test_what_the_archive_no_longer_holds_is_named(site: Site) -> None:
    site.locked()
    (site.archive.folder / "pool/libtool1_1.0_amd64.deb").unlink()
    site.archive.package("libtool1", "1.1", {"/lib/libtool": b"new"})
    site.archive.publish()
    refused(site.build("--locked"), 1, "no longer holds", "libtool1 1.0", "capsulekit lock")
    clean(site)


# --- locks


def test_a_lock_holds_the_keys_that_vouched_and_what_asked_for_each_package(site: Site) -> None:
    site.locked()
    lock = load(site.lock)
    assert [key.fingerprint for key in lock.keys] == [site.archive.key]
    assert {p.name: p.by for p in lock.sets["rootfs"]} == {"tool": "recipe", "libtool1": "tool"}
    assert {p.path for p in lock.sets["rootfs"]} == {"pool/tool_1.0_amd64.deb", "pool/libtool1_1.0_amd64.deb"}
    done = site.run("lock", site.recipe, "--why", "libtool1")
    assert done.stdout == "libtool1 1.0 <- tool <- the recipe (rootfs)\n"
    refused(site.run("lock", site.recipe, "--why", "nothing"), 1, "does not lock a package nothing")


def test_a_build_from_a_lock_trusts_the_locks_keys_and_no_others(site: Site) -> None:
    site.locked()
    site.archive.publish_key(site.archive.new_key("other"))
    assert "index does not hold" not in site.build("--locked").stderr, "the lock's own key vouches"
    shutil.rmtree(site.cache)
    site.archive.publish(key=site.archive.new_key("third"))
    refused(site.build("--locked"), 3, "the package archive's index does not hold")


@pytest.mark.long
def test_updating_one_package_leaves_all_others_even_those_the_archive_has_dropped(site: Site) -> None:
    site.locked()
    site.build("--locked")  # the packages are in the cache now
    for name in ("tool", "libtool1"):
        (site.archive.folder / f"pool/{name}_1.0_amd64.deb").unlink()
        site.archive.package(
            name, "2.0", {f"/lib/{name}": b"new"}, **({"Depends": "libtool1"} if name == "tool" else {})
        )
    site.archive.publish(date=1_700_009_999)
    before = site.lock.read_bytes()
    assert "rootfs tool: 1.0 -> 2.0" in site.locked("--update", "tool", "--dry-run")
    assert site.lock.read_bytes() == before, "a dry run writes nothing"
    said = site.locked("--update", "tool")
    assert "rootfs tool: 1.0 -> 2.0" in said and "libtool1" not in said
    assert (site.versions()["tool"], site.versions()["libtool1"]) == ("2.0", "1.0")
    assert next(p.path for p in load(site.lock).sets["rootfs"] if p.name == "libtool1") == "pool/libtool1_1.0_amd64.deb"
    assert "rootfs libtool1: 1.0 -> 2.0" in site.locked("--update")
    assert site.versions()["libtool1"] == "2.0"
    refused(site.run("lock", site.recipe, "--update", "nothing"), 1, "does not lock a package nothing")


def test_a_locked_build_refuses_a_recipe_that_has_changed(site: Site) -> None:
    refused(site.build("--locked"), 1, "r.lock: the lock cannot be read: No such file or directory")
    site.locked()
    site.recipe.write_text(RECIPE.replace('["tool"]', '["tool", "acl"]'))
    refused(site.build("--locked"), 1, "r.lock", "capsulekit lock")


def test_downloads_run_side_by_side_and_each_package_comes_once(site: Site) -> None:
    for number in range(8):
        site.archive.package(f"part{number}", "1.0", {f"/usr/share/part{number}": os.urandom(20000)})
    site.archive.publish()
    names = ", ".join(f'"part{n}"' for n in range(8))
    site.recipe.write_text(RECIPE.replace('["tool"]', f'["tool", {names}]'))
    site.build()
    fetched = [Path(p).name for p in site.archive.mirror.asked if p.endswith(".deb")]
    assert sorted(fetched) == sorted(set(fetched)) and len(fetched) == 13


def test_an_archive_of_the_authors_own_must_be_complete(site: Site) -> None:
    (site.archive.own / "sources.list").unlink()
    refused(site.run("lock", site.recipe), 1, "sources.list cannot be read: No such file or directory")
    site.archive.publish_key(site.archive.key)
    (site.archive.own / "sources.list").write_text("deb file:/nowhere bookworm main\n")
    (site.archive.own / "keys.gpg").write_bytes(b"not a key")
    refused(site.run("lock", site.recipe), 1, "keys.gpg is no keyring")


def test_json_says_what_the_lock_holds(site: Site) -> None:
    said = json.loads(site.locked("--json"))
    assert said["packages"] == 5 and said["path"] == str(site.lock) and said["dry_run"] is False
