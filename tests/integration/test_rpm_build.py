"""An RPM capsule, built for real from the distribution made on the spot: what is in it, and that it stays the same."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import built
import pytest
from images import names_in
from rpm_distro import EPOCH, describe_repos, distribution, sh, signer

from capsulekit.cache import Cache
from capsulekit.distro import rocky
from capsulekit.lock.model import Lock, Request, load
from capsulekit.rpm import rpmdb
from capsulekit.rpm.distro import RpmDistro

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount the layers"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("dnf", "rpmbuild", "createrepo_c"))), reason="needs dnf, rpm, createrepo-c"
    ),
]
PROGRAM = Path(sys.executable).with_name("capsulekit")
RECIPE = built.ROOT / "tests/data/rpm/recipe.toml"
DB = "var/lib/rpm"


@dataclass
class Made:
    """The distribution's description, a cache, the lock and the capsule that came out, and what the build printed."""

    repos: Path
    cache: Path
    lock: Path
    capsule: Path
    printed: str

    def run(self, *words: str | Path, before: tuple[str, ...] = ()) -> str:
        env = {**os.environ, "CAPSULEKIT_REPOS_DIR": str(self.repos)}
        return sh(*before, PROGRAM, *words, env=env)

    def build(self, out: Path, cache: Path, *words: str | Path, before: tuple[str, ...] = ()) -> str:
        key = built.author_key()
        return self.run(
            "build", RECIPE, "-o", out, "--key", key, "--lock", self.lock, "--cache-dir", cache, *words, before=before
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("rpm")
    with signer("rocky") as key:
        distribution(folder / "repo", key)
        repos = describe_repos(folder / "repos", {"baseos": f"file://{folder}/repo"}, key.public)
    made = Made(repos, folder / "cache", folder / "recipe.lock", folder / "one.vnfs", "")
    made.run("lock", RECIPE, "-o", made.lock, "--cache-dir", made.cache)
    made.printed = made.build(made.capsule, made.cache)
    yield made


@pytest.fixture(scope="module")
def lock(made: Made) -> Lock:
    return load(made.lock)


@pytest.fixture(scope="module")
def parts(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capsule's members, unpacked."""
    folder = tmp_path_factory.mktemp("parts")
    sh("tar", "-C", folder, "-xf", made.capsule)
    return folder


@contextmanager
def mounted(layer: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    sh("mount", "-o", "loop,ro", layer, folder)
    try:
        yield folder
    finally:
        sh("umount", folder)


@pytest.fixture(scope="module")
def root(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The capsule's root layer, mounted read-only."""
    with mounted(parts / "layers/rootfs.squashfs", tmp_path_factory.mktemp("mounts") / "root") as path:
        yield path


# --- what is in it


def test_scriptlets_ran_inside_the_root(root: Path) -> None:
    assert (root / "var/lib/timed/post").read_text() == "post of timed, 1 installed, as 0\n"


def test_accounts_made_by_a_script_or_declared_own_their_files(root: Path) -> None:
    users = dict(line.split(":", 1) for line in (root / "etc/passwd").read_text().splitlines())
    for name in ("timed", "brokerd"):
        uid = int(users[name].split(":")[1])
        folder = (root / "var/lib" / name).stat()
        assert uid > 0 and (folder.st_uid, folder.st_gid) == (uid, uid), name
    assert [p.name for p in (root / "etc").glob("*.rpm*")] == []


def test_a_file_capability_survives(root: Path) -> None:
    assert sh("getcap", root / "usr/bin/ping").split()[1:] == ["cap_net_raw=p"]


def test_weak_dependencies_stay_out(root: Path, lock: Lock) -> None:
    assert "timed" in {p.name for p in lock.sets["rootfs"]}
    assert "unwanted" not in {p.name for p in lock.sets["rootfs"]} and not (root / "usr/share/unwanted").exists()


def test_the_packages_can_be_asked_for_with_rpm(root: Path, lock: Lock) -> None:
    assert [p.name for p in (root / DB).iterdir()] == ["rpmdb.sqlite"]
    query: list[str | Path] = [
        "rpm",
        "--dbpath",
        root / DB,
        "-qa",
        "--qf",
        "%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH}\n",
    ]
    assert sorted(sh(*query).splitlines()) == sorted(f"{p.name} {p.version} {p.arch}" for p in lock.sets["rootfs"])
    times = sh("rpm", "--dbpath", root / DB, "-qa", "--qf", "%{INSTALLTIME} %{INSTALLTID}\n").splitlines()
    assert set(times) == {f"{EPOCH} {EPOCH}"}
    assert sh("rpm", "--dbpath", root / DB, "-q", "--whatprovides", "/bin/sh", "--qf", "%{NAME}") == "bash"


def test_rpm_finds_nothing_changed_but_the_accounts(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["rpm", "--root", root, "--dbpath", f"/{DB}", "-Va", "--nodeps"], capture_output=True, text=True, check=False
    )
    changed = {line.split()[-1] for line in done.stdout.splitlines() if "5" in line[:9] or line.startswith("missing")}
    assert changed <= {f"/etc/{name}" for name in ("passwd", "group", "shadow", "gshadow")}, done.stdout


def test_the_database_is_whole_and_in_the_order_of_names(root: Path) -> None:
    with closing(sqlite3.connect(f"file:{root / DB}/rpmdb.sqlite?immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)
    names = [header.name for header in rpmdb.headers(root / DB / "rpmdb.sqlite")]
    assert names == sorted(names) and len(names) > 15


def test_every_packaged_path_has_an_owner(root: Path) -> None:
    owners = rpmdb.file_owners(root / DB / "rpmdb.sqlite")
    assert (owners["/usr/bin/ping"], owners["/etc/timed.conf"]) == ("iputils", "timed")
    assert all(os.path.lexists(root / path.lstrip("/")) for path in owners if not path.startswith(("/boot", "/dev")))


def test_dnf_and_the_build_leave_nothing_behind(root: Path) -> None:
    assert (
        not (root / "etc/dnf").exists() and not (root / "var/lib/dnf").exists() and not (root / ".capsulekit").exists()
    )
    assert list((root / "run").iterdir()) == [] and list((root / "tmp").iterdir()) == []
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("tmp", "var/tmp", "proc", "root", "run")}
    assert modes == {"tmp": 0o1777, "var/tmp": 0o1777, "proc": 0o555, "root": 0o550, "run": 0o755}


def test_kernel_image_and_modules_come_out_of_their_packages(parts: Path, lock: Lock, tmp_path: Path) -> None:
    names = {p.name for p in lock.sets["kernel"]}
    assert names == {"kernel", "kernel-core", "kernel-modules", "kernel-modules-core"}, "not what they depend on"
    with mounted(parts / "layers/modules.squashfs", tmp_path / "modules") as layer:
        (release,) = [path.name for path in (layer / "usr/lib/modules").iterdir()]
        modules = {path.name for path in (layer / "usr/lib/modules" / release).rglob("*")}
    assert {"overlay.ko", "squashfs.ko", "modules.dep"} <= modules
    assert not {"vmlinuz", "System.map"} & modules, "the image is the capsule's own, once"
    assert (parts / "boot/vmlinuz").read_bytes()[0x202:0x206] == b"HdrS"  # the kernel's boot protocol


def test_stage_2_is_made_of_the_distributions_own_programs(parts: Path) -> None:
    names = names_in((parts / "boot/initrd.img").read_bytes())
    assert {"usr/bin/bash", "usr/bin/mount", "usr/bin/setfacl"} <= names, names


def test_the_sbom_says_which_packages_and_under_which_licence(parts: Path) -> None:
    sbom = json.loads((parts / "sbom.cdx.json").read_text())
    (timed,) = [c for c in sbom["components"] if c["name"] == "timed"]
    assert timed["purl"].startswith("pkg:rpm/rocky/timed@4.2-1.el9") and "GPL-2.0-only" in json.dumps(timed["licenses"])


def test_the_lock_says_what_asked_for_each_package(lock: Lock) -> None:
    by = {p.name: p.by for p in lock.sets["rootfs"]}
    assert (by["timed"], by["bash"], by["shadow-utils"], by["glibc"]) == ("recipe", "essential", "essential", "bash")
    assert {p.by for p in lock.sets["rootfs"]} <= {"recipe", "essential", *by}
    assert {name: lock.tools[name] for name in ("rpm", "sqlite")} == {
        "rpm": sh("rpm", "--version").split()[-1],
        "sqlite": sqlite3.sqlite_version,
    }
    assert next(p.version for p in lock.sets["rootfs"] if p.name == "glibc") == "2:2.36-1.el9"


# --- always the same


def with_packages_of(cache: Path, where: Path) -> Path:
    """A cache with the downloaded packages and nothing else."""
    shutil.copytree(cache / "packages", where / "packages", copy_function=os.link)
    return where


def test_made_again_without_a_network_it_is_the_same_file(made: Made, tmp_path: Path) -> None:
    cache = with_packages_of(made.cache, tmp_path / "cold")
    made.build(tmp_path / "two.vnfs", cache, "--offline", before=("unshare", "--net"))
    assert (tmp_path / "two.vnfs").read_bytes() == made.capsule.read_bytes()


def test_unchanged_everything_is_reused(made: Made, tmp_path: Path) -> None:
    printed = made.build(tmp_path / "again.vnfs", made.cache)
    assert (tmp_path / "again.vnfs").read_bytes() == made.capsule.read_bytes()
    assert "install" not in printed, printed


@pytest.fixture(scope="module")
def maker(made: Made) -> RpmDistro:
    return rocky.create("9", "amd64", Cache(made.cache), made.repos / "rocky-9")


def installed(maker: RpmDistro, lock: Lock, base: str, folder: Path) -> Path:
    """The root after all stages, unpacked."""
    before = None
    maker.fetch(lock, lock.sets["rootfs"], False, lambda _: None)
    for stage in range(max(p.stage for p in lock.sets["rootfs"]) + 1):
        target = folder / f"{stage}.tar"
        with maker.cache.scratch() as work, target.open("wb") as out:
            maker.install(lock, base, stage, before, work, out)
        before = target
    assert before is not None
    (folder / "root").mkdir()
    sh("tar", "-C", folder / "root", "-xpf", before, "--xattrs", "--xattrs-include=*")
    return folder / "root"


def test_a_later_stage_brings_only_what_is_new_on_top(maker: RpmDistro, tmp_path: Path) -> None:
    lock = maker.resolve(Request("essential", (("iputils",), ("timed", "brokerd"), ("timed",)), (), ()))
    stages = {p.name: p.stage for p in lock.sets["rootfs"]}
    assert (stages["bash"], stages["iputils"], stages["timed"], stages["brokerd"]) == (0, 0, 1, 1)
    root = installed(maker, lock, "essential", tmp_path)
    assert (root / "var/lib/timed/post").exists() and (root / "usr/bin/ping").exists()
    found = {(h.name, h.version) for h in rpmdb.headers(root / DB / "rpmdb.sqlite")}
    assert found == {(p.name, p.version) for p in lock.sets["rootfs"]}
    assert "brokerd" in (root / "etc/passwd").read_text()


def test_an_extracted_root_has_the_files_and_ran_nothing(maker: RpmDistro, tmp_path: Path) -> None:
    lock = maker.resolve(Request("extract", (("timed", "busybox"),), (), ()))
    root = installed(maker, lock, "extract", tmp_path)
    assert (root / "usr/sbin/timed").exists() and (root / "sbin").is_symlink()
    assert not (root / "var/lib/timed/post").exists() and not (root / DB / "rpmdb.sqlite").exists()
