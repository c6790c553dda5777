"""Capsules built for real: who owns each path by dpkg's own word, and what a changed recipe explains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import built
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from capsulekit.capsule import manifest
from capsulekit.capsule.read import open_capsule, verify
from capsulekit.diff import diff
from capsulekit.image.listing import read_files
from capsulekit.metadata.owners import Owners, load_owners
from capsulekit.metadata.tree import ROOT, layers_of
from capsulekit.trust.minisign import load_public
from capsulekit.why import why

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to build a root file system"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
]
PROGRAM = Path(sys.executable).with_name("capsulekit")
CHANGED = """extends = ["{compute}"]

[users.ann]
uid = 4242

[services]
disable = ["chrony.service"]

[scripts]
rootfs = ["50-stamp"]

[files."/sbin/hello"]
mode = "0755"
content = "#!/bin/sh\\n"
"""
SCRIPT = "#!/bin/sh\necho stamped >/etc/stamp\necho '# ours' >>/etc/ssh/sshd_config\n"


@pytest.fixture(scope="module")
def compute() -> Path:
    return built.capsule(built.COMPUTE)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compute capsule with a user, a service, a script and a file of its own."""
    folder = tmp_path_factory.mktemp("changed")
    (folder / "50-stamp").write_text(SCRIPT)
    (folder / "recipe.toml").write_text(CHANGED.format(compute=built.COMPUTE))
    return built.capsule(folder / "recipe.toml")


def owners_of(capsule: Path) -> Owners:
    with open_capsule(capsule) as opened:
        return load_owners(opened, manifest.loads(opened.read_member(manifest.MEMBER)))


def member(capsule: Path, name: str) -> bytes:
    with open_capsule(capsule) as opened:
        return opened.read_member(name, 64 << 20)


def causes(capsule: Path, path: str) -> list[str]:
    answer = why(capsule, path, [load_public(built.author_key().with_suffix(".pub"))])
    assert answer.verified
    return [str(cause) for cause in answer.causes]


def dpkg(capsule: Path, folder: Path, *words: str) -> str:
    """Ask the real dpkg-query about the database inside the capsule's root."""
    with open_capsule(capsule) as opened:
        root = layers_of(opened, manifest.loads(opened.read_member(manifest.MEMBER)))[ROOT]
        kept = read_files(root, ["var/lib/dpkg/status", "var/lib/dpkg/info/*.list"])
    for name, data in kept.items():
        target = folder / Path(name).relative_to("var/lib/dpkg")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (folder / "info/format").write_text("1\n")
    argv = ["dpkg-query", f"--admindir={folder}", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_every_path_of_the_compute_capsule_has_an_owner(compute: Path) -> None:
    owners = owners_of(compute)
    paths = [path for _, path, _ in owners.tree.paths()]
    assert len(paths) > 10000
    assert [path for path in paths if not owners.of(path)] == []


def test_packages_and_their_paths_are_those_that_dpkg_itself_names(compute: Path, tmp_path: Path) -> None:
    owners = owners_of(compute)
    for name in ("coreutils", "openssh-server", "libc6:amd64"):
        listed = dpkg(compute, tmp_path, "-L", name).splitlines()
        assert len(listed) > 10
        for path in listed:
            real = owners.tree.real(path.strip("/.") if path == "/." else path.lstrip("/"))
            assert name in owners.packages[real], path


def test_the_bill_of_materials_holds_what_dpkg_says_is_installed(compute: Path, tmp_path: Path) -> None:
    text = member(compute, "sbom.cdx.json").decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    told = {
        (one["name"], one["version"])
        for one in components
        if {"name": "capsulekit:part", "value": "rootfs"} in one["properties"]
    }
    installed = dpkg(compute, tmp_path, "-W", "-f", "${Package} ${Version}\n").splitlines()
    assert told == {(name, version) for name, version in (row.split(" ") for row in installed)}
    assert sum("licenses" in one for one in components) > len(components) // 2


def test_the_provenance_names_the_bytes_that_are_in_the_capsule(compute: Path) -> None:
    statement = json.loads(member(compute, "provenance.json"))
    with open_capsule(compute) as opened:
        members = verify(opened, [load_public(built.author_key().with_suffix(".pub"))]).members
    subjects = {one["name"].partition("/")[2]: one["digest"]["sha256"] for one in statement["subject"]}
    assert subjects == {name: m.sha256 for name, m in members.items() if name.startswith(("boot/", "layers/"))}


def test_each_part_of_the_recipe_is_named_for_what_it_made(changed: Path) -> None:
    assert causes(changed, "/etc/stamp") == ["script 50-stamp"]
    assert causes(changed, "/etc/ssh/sshd_config")[0] == "script 50-stamp"
    assert causes(changed, "/sbin/hello") == ["file /sbin/hello"]
    assert "user ann" in causes(changed, "/home/ann")
    assert "user ann" in causes(changed, "/etc/passwd")
    assert causes(changed, "/bin/ls") == ["package coreutils"]
    assert causes(changed, "/etc/machine-id")[0] == "normaliser /etc/machine-id"
    assert causes(changed, "/boot/vmlinuz")[0].startswith("kernel linux-image")


def test_a_changed_recipe_explains_every_path_that_differs(compute: Path, changed: Path) -> None:
    found = diff(compute, changed, [])
    assert found.packages == ()
    groups = {group.cause: {change.path for change in group.changes} for group in found.causes}
    assert groups["recipe: script 50-stamp added"] == {"etc/stamp", "etc/ssh/sshd_config"}
    assert groups["recipe: file /sbin/hello added"] == {"usr/sbin/hello"}
    assert {"etc/passwd", "etc/group", "home/ann"} <= groups["recipe: user ann added"]
    assert any("chrony" in path for path in groups["recipe: service chrony.service added"])
    assert all(cause.startswith("recipe: ") for cause in groups), groups


def test_a_root_too_large_for_the_ram_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'extends = ["{built.BUSYBOX}"]\n[image]\nram_max = "60M"\n')
    argv = [PROGRAM, "build", recipe, "-o", tmp_path / "x.vnfs", "--key", built.author_key()]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[image] ram_max allows" in done.stderr
    assert "the largest in the root, unpacked: " in done.stderr
    assert not (tmp_path / "x.vnfs").exists()
