"""The RPM distributions' own files: what is known, what is refused, where their packages may come from."""

from __future__ import annotations

import platform
from importlib import import_module
from pathlib import Path

import pytest

from capsulekit.cache import Cache
from capsulekit.distro.base import distro
from capsulekit.errors import CapsulekitError
from capsulekit.lock.model import Package, Request
from capsulekit.rpm.distro import RpmDistro

NOTHING = Request("essential", ((),), (), ())
ALL = [("rocky", "9"), ("rocky", "10"), ("alma", "9"), ("alma", "10"), ("fedora", "42"), ("fedora", "43")]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def made(name: str, release: str, cache: Cache, arch: str = "amd64", repos: Path | None = None) -> RpmDistro:
    found = import_module(f"capsulekit.distro.{name}").create(release, arch, cache, repos)
    assert isinstance(found, RpmDistro)
    return found


@pytest.mark.parametrize(("name", "release"), ALL)
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_each_release_is_found_by_its_name(name: str, release: str, arch: str, cache: Cache) -> None:
    found = distro(name, release, arch, cache)
    assert found.purl == ("rpm", {"alma": "almalinux"}.get(name, name)) and {"bash", "coreutils", "kmod"} <= set(
        found.stage2_packages
    )


@pytest.mark.parametrize(
    ("release", "arch", "message"), [("8", "amd64", "release 8"), ("9", "i386", "architecture i386")]
)
def test_another_release_or_architecture_is_refused_naming_the_known(
    release: str, arch: str, message: str, cache: Cache
) -> None:
    with pytest.raises(CapsulekitError, match=message) as error:
        made("rocky", release, cache, arch)
    assert error.value.hint and error.value.hint.startswith("known: ")


def test_without_repositories_the_way_out_is_said(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"})
    with pytest.raises(CapsulekitError, match="nothing says where the packages of AlmaLinux 9 come from") as error:
        made("alma", "9", cache).resolve(NOTHING)
    assert error.value.hint and "alma-9" in error.value.hint and "CAPSULEKIT_REPOS_DIR" in error.value.hint


@pytest.mark.parametrize(("name", "release", "os_id"), [("rocky", "9", "rocky"), ("alma", "10", "almalinux")])
def test_a_machine_that_runs_the_very_release_uses_its_own_repositories(
    name: str, release: str, os_id: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "yum.repos.d"
    own.mkdir()
    monkeypatch.setattr("capsulekit.rpm.distro.HOST_REPOS", own)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": os_id, "VERSION_ID": f"{release}.4"})
    with pytest.raises(CapsulekitError, match=f"{own}: no enabled repository"):
        made(name, release, cache).resolve(NOTHING)


@pytest.mark.parametrize("key", ["https://keys.example/KEY-x", "file:///etc/pki/rpm-gpg/KEY-x"])
def test_a_key_is_never_fetched_but_asked_for_as_a_file(key: str, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "x.repo").write_text(f"[x]\nname=x\nbaseurl=file:///nowhere\ngpgkey={key}\n")
    with pytest.raises(CapsulekitError, match=r"the repository x names the key .*KEY-x") as error:
        made("rocky", "9", cache, repos=tmp_path).resolve(NOTHING)
    assert error.value.hint == f"put the key's file into {tmp_path}"


def test_a_repository_without_a_key_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "x.repo").write_text("[x]\nname=x\nbaseurl=file:///nowhere\ngpgcheck=0\n")
    with pytest.raises(CapsulekitError, match="the repository x names no gpgkey: nothing would vouch"):
        made("rocky", "9", cache, repos=tmp_path).resolve(NOTHING)


@pytest.mark.parametrize(
    ("name", "is_kernel"),
    [
        ("kernel-core", True), ("kernel-modules", True), ("kernel-modules-core", True), ("kernel-modules-extra", True),
        ("kernel-rt-core", True), ("kernel-64k-modules", True), ("kernel", False), ("kernel-tools", False),
        ("kernel-headers", False), ("linux-firmware", False), ("dracut", False),
    ],
)  # fmt: skip
def test_only_what_brings_image_or_modules_is_the_kernel(name: str, is_kernel: bool, cache: Cache) -> None:
    package = Package(name, "1-1", "x86_64", 1, "0" * 64, "x.rpm")
    assert made("rocky", "9", cache).is_kernel(package) == is_kernel
