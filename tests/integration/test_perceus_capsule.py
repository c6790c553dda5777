"""A Perceus capsule is converted on import: one of ours, signed by the site, with nothing of it run on the master."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from asking_capsule import kit, store_of, stored, trusting_site
from own_programs import RELEASE
from packed_tree import packable
from perceus_capsule import perceus_capsule

from capsulekit.sitepaths import SitePaths
from provisioner.sitekey import ensure_site_key

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files")]
PROGRAM = Path(sys.executable).with_name("capsulekit")
FILE = "testos-7.2-3.stateless.x86_64.vnfs"
NAME = "testos-7.2-3.amd64"
SCRIPT = "provision/init/50-local.sh"


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return trusting_site(tmp_path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packable(tmp_path_factory.mktemp("made") / "tree")


@pytest.fixture(scope="module")
def capsule(tree: Path) -> Path:
    return perceus_capsule(tree.parent / FILE, tree)


def nothing_left(paths: SitePaths) -> bool:
    work = paths.state / "work" / "tmp"
    left = [p for p in work.iterdir() if p.name != ".lock"] if work.exists() else []
    return stored(paths) == [] and left == [] and kit(paths, "vnfs", "list").out == ""


def test_it_becomes_one_of_ours_signed_by_the_site(paths: SitePaths, capsule: Path, tmp_path: Path) -> None:
    done = kit(paths, "vnfs", "import", capsule, "-y")
    assert (done.status, done.out.split(" (")[0]) == (0, f"{NAME} imported"), done.err
    told = done.err
    for line in (
        "a Perceus capsule, signed by nobody", "kernel arguments, kept: ramdisk_blocksize=1024 console=ttyS0",
        "hybridize list, kept: /usr/share /usr/X11R6 /usr/lib/locale", "no path, not kept: 'usr/src'",
        "never run and not kept: close configure livesync mount umount", "script for nodes: init/50-local.sh",
        "left out: nodescripts/init/10-vnfsinit.sh (Perceus's own boot)",
    ):  # fmt: skip
        assert line in told
    store = store_of(paths)
    manifest, row = store.manifest(NAME), store.get(NAME)
    assert row.key_id == ensure_site_key(paths).public.id and not row.private
    assert (manifest.kernel_release, manifest.cmdline) == (RELEASE, "ramdisk_blocksize=1024 console=ttyS0")
    assert manifest.hybridize == ("/usr/share", "/usr/X11R6", "/usr/lib/locale") and manifest.provision == ()
    assert store.small(NAME, "hybridize") == b"/usr/share\n/usr/X11R6\n/usr/lib/locale\n"
    assert store.small(NAME, "livesync.skip") == b"/etc/passwd\n/home\n"
    assert not Path("/tmp/ran").exists(), "something of the capsule was run"
    assert kit(paths, "vnfs", "verify", NAME).status == 0
    image = store.blob(store.digests(NAME)["layers/rootfs.squashfs"])
    argv = ["unsquashfs", "-q", "-n", "-d", tmp_path / "root", image, "etc/os-release"]
    subprocess.run(argv, check=True, capture_output=True)
    assert "ID=testos" in (tmp_path / "root/etc/os-release").read_text()
    assert [p.name for p in (paths.state / "work" / "tmp").iterdir()] == [".lock"]


def test_its_scripts_go_along_only_when_the_admin_agrees(paths: SitePaths, capsule: Path) -> None:
    assert kit(paths, "vnfs", "import", capsule, "-y", "--with-scripts", "--as", "flag").status == 0
    store = store_of(paths)
    assert store.manifest("flag").provision == (SCRIPT,)
    assert store.small("flag", SCRIPT) == b"#!/bin/sh\necho local\n"
    words = ["--config-dir", str(paths.config), "--state-dir", str(paths.state), "vnfs", "import", str(capsule)]
    for name, answer, expected in (("agreed", "yes", (SCRIPT,)), ("not", "no", ())):
        with pexpect.spawn(str(PROGRAM), [*words, "--as", name], timeout=240, encoding="utf-8") as child:
            child.expect("script for nodes: init/50-local.sh")
            child.expect(r"Convert it into a capsule signed by this site\? \[yes/no\]> ")
            child.sendline("yes")
            child.expect(r"Shall its scripts run on nodes, as root\? \[yes/no\]> ")
            child.sendline(answer)
            child.expect(f"{name} imported")
            child.expect(pexpect.EOF)
        assert store.manifest(name).provision == expected


def test_nothing_is_converted_unless_the_admin_says_so(paths: SitePaths, capsule: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "--config-dir", paths.config, "--state-dir", paths.state, "vnfs", "import", capsule],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "signed by nobody" in done.stderr and done.stdout == ""
    assert nothing_left(paths)


def test_a_dry_run_only_looks(paths: SitePaths, capsule: Path) -> None:
    done = kit(paths, "vnfs", "import", capsule, "--dry-run")
    assert done.status == 0 and "It would be converted." in done.err
    assert json.loads(kit(paths, "vnfs", "import", capsule, "--dry-run", "--json").out)["perceus"] is True
    assert nothing_left(paths) and not (paths.config / "pki").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("old", "its kernel 2.6.18-53.el5 is older than 4.14 and can't read our layers"),
        ("none", "has no kernel"),
        ("modules", "has no kernel"),
        ("busybox", "can't be converted"),
        ("init", "has no /sbin/init"),
        ("asked", "has no kernel 9.9 with its modules"),
    ],
)
def test_a_root_that_no_node_could_boot_is_refused(
    paths: SitePaths, tree: Path, tmp_path: Path, change: str, told: str
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    modules = copy / "usr/lib/modules"
    if change == "old":
        (modules / RELEASE).rename(modules / "2.6.18-53.el5")
        (copy / f"boot/vmlinuz-{RELEASE}").rename(copy / "boot/vmlinuz-2.6.18-53.el5")
    elif change == "none":
        shutil.rmtree(copy / "boot")
        shutil.rmtree(modules)
    elif change == "modules":
        shutil.rmtree(copy / "boot")
    elif change == "busybox":
        (copy / "usr/bin/busybox").unlink()
    elif change == "init":
        (copy / "sbin/init").unlink()
    path = perceus_capsule(tmp_path / FILE, copy)
    words = ("--kernel", "9.9") if change == "asked" else ()
    done = kit(paths, "vnfs", "import", path, "-y", *words)
    assert done.status == 1 and told in done.err and "Traceback" not in done.err, done.err
    assert nothing_left(paths)


def test_a_bomb_is_stopped_at_the_bound(paths: SitePaths, capsule: Path) -> None:
    done = kit(paths, "vnfs", "import", capsule, "-y", "--max-size", "1")
    assert done.status == 1 and "unpacks to more than 1 MB" in done.err and "--max-size" in done.err
    assert nothing_left(paths)


def test_flags_for_perceus_are_refused_with_one_of_ours(paths: SitePaths, tmp_path: Path) -> None:
    from small_capsule import small_capsule

    small_capsule(tmp_path / "t.vnfs")
    for words in (("--with-scripts",), ("--without-scripts",), ("--kernel", "6.1")):
        done = kit(paths, "vnfs", "import", tmp_path / "t.vnfs", *words)
        assert done.status == 2 and "are for capsules of Perceus" in done.err
    assert nothing_left(paths)
