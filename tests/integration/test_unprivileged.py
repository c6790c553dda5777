"""Building as an ordinary user, and as root of containers that may do less than root: the same bytes as root's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import as_others
import built
import pytest

from capsulekit.cache import default_cache_dir
from capsulekit.capsule.read import open_capsule

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else"),
    pytest.mark.skipif(not shutil.which("newuidmap"), reason="needs newuidmap (package uidmap)"),
]
PROGRAM = Path(sys.executable).with_name("capsulekit")
# Scripts run in the chroot here: dash and coreutils come with the essential packages.
RECIPE = """[capsule]
name = "anywhere"
version = "1"
init = "/bin/sh"
[distro]
name = "debian"
release = "12"
[packages]
include = ["iputils-ping", "libcap2-bin", "passwd"]
[kernel]
package = "linux-image-cloud-amd64"
modules = ["loop", "squashfs", "overlay"]
[groups.hpc]
gid = 700
[users.admin]
groups = ["hpc"]
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me"]
[users.root]
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB root"]
[users.daemon]
groups = ["hpc"]
[groups.games]
gid = 6060
[files."/etc/motd"]
content = "hello\\n"
group = "hpc"
[scripts]
rootfs = [{ name = "odd", text = '''#!/bin/sh
set -eu
id -u >/etc/built-by
date +%Z >>/etc/built-by
umask >>/etc/built-by
mkfifo /etc/fifo
chown 4711:815 /etc/fifo
chmod 4755 /bin/true
setcap cap_net_raw+ep /bin/false
ln /etc/motd /etc/motd.link
''' }]
"""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capsule as root builds it, with recipe, lock and key beside it."""
    where = tmp_path_factory.mktemp("roots")
    (where / "r.toml").write_text(RECIPE)
    shutil.copy(built.author_key(), where / "key")
    words = [PROGRAM, "build", where / "r.toml", "-o", where / "x.vnfs", "--key", where / "key", "--write-lock", "-q"]
    subprocess.run([str(w) for w in words], check=True, timeout=600)
    return where


def equipped(roots: Path, home: Path) -> list[str | Path]:
    """A home with recipe, lock, key and the downloaded packages; the words of the build there."""
    (home / "cache").mkdir(parents=True)
    for name in ("r.toml", "r.lock", "key"):
        shutil.copy(roots / name, home / name)
    with open_capsule(roots / "x.vnfs") as capsule:
        wanted = set(re.findall(rb'^sha256 = "([0-9a-f]{64})"', capsule.read_member("capsule.lock"), re.M))
    for digest in (w.decode() for w in wanted):
        for suffix in (".pkg", ".control"):
            source = default_cache_dir() / "packages" / digest[:2] / f"{digest}{suffix}"
            if source.exists():
                target = home / "cache/packages" / digest[:2] / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    for base, folders, files in os.walk(home):
        for name in (*folders, *files):
            os.chown(Path(base, name), as_others.UID, as_others.UID)
    return [PROGRAM, "build", "r.toml", "-o", "x.vnfs", "--key", "key", "--locked", "--offline", "--cache-dir", "cache"]


def same(roots: Path, home: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert (home / "x.vnfs").read_bytes() == (roots / "x.vnfs").read_bytes()
    assert [p.name for p in (home / "cache/tmp").iterdir() if p.name != ".lock"] == []


def test_groups_users_and_files_are_as_the_recipe_says(roots: Path, tmp_path: Path) -> None:
    def of(path: str) -> str:
        argv = ["unsquashfs", "-cat", tmp_path / "layers/rootfs.squashfs", path]
        return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, timeout=60).stdout

    subprocess.run(["tar", "-C", tmp_path, "-xf", roots / "x.vnfs"], check=True, timeout=60)
    groups = {line.split(":")[0]: line.split(":") for line in of("etc/group").splitlines()}
    assert groups["hpc"][2] == "700" and set(groups["hpc"][3].split(",")) == {"admin", "daemon"}
    assert groups["games"][2] == "6060", "a group that is there gets its number"
    assert of("root/.ssh/authorized_keys").endswith(" root\n") and of("home/admin/.ssh/authorized_keys").endswith(
        " me\n"
    )
    listed = subprocess.run(
        ["unsquashfs", "-lln", tmp_path / "layers/rootfs.squashfs"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {line.split(" squashfs-root/")[1]: line.split()[:2] for line in listed if " squashfs-root/" in line}
    assert found["root/.ssh"] == ["drwx------", "0/0"] and found["root/.ssh/authorized_keys"] == ["-rw-------", "0/0"]
    assert found["etc/fifo"] == ["prw-r--r--", "4711/815"] and found["etc/motd"][1] == "0/700"
    assert found["usr/bin/true"][0] == "-rwsr-xr-x"
    assert of("etc/built-by").split() == ["0", "UTC", "0022"]


def test_a_containers_root_builds_what_root_builds(roots: Path, tmp_path: Path) -> None:
    words = equipped(roots, tmp_path / "home")
    same(roots, tmp_path / "home", as_others.run(tmp_path / "home", *words, contained=True))


def test_root_that_may_not_mount_builds_the_same(roots: Path, tmp_path: Path) -> None:
    """What containers get by default: root without CAP_SYS_ADMIN."""
    home = tmp_path / "home"
    words = equipped(roots, home)
    less = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    argv = [str(w) for w in (*less, *words)]
    done = subprocess.run(argv, cwd=home, capture_output=True, text=True, check=False, timeout=600)
    same(roots, home, done)


def test_a_user_without_subordinate_ids_is_told_how_to_get_them(roots: Path, tmp_path: Path) -> None:
    words = equipped(roots, tmp_path / "home")
    done = as_others.run(tmp_path / "home", *words, subids=False)
    assert done.returncode == 1 and "usermod --add-subuids" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 2 and not (tmp_path / "home/x.vnfs").exists()


def test_a_users_killed_build_is_cleaned_up_by_the_next_which_builds_what_root_builds(
    roots: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    words = equipped(roots, home)
    # Where it works is seen by nobody else, so its log tells that it has begun.
    killer = (
        '"$@" & child=$!; n=0; while [ ! -e cache/tmp/*/install.log ] && [ $n -lt 600 ]; '
        "do sleep 0.1; n=$((n + 1)); done; sleep 3; kill -9 $child; wait"
    )
    done = as_others.run(home, "sh", "-c", killer, "sh", *words, timeout=120)
    assert not (home / "x.vnfs").exists(), done.stderr
    same(roots, home, as_others.run(home, *words))
    assert (home / "x.vnfs").stat().st_uid == as_others.UID
