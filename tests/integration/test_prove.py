"""Proof for real: two rebuilds in other surroundings, what they find out, and a rebuild that keeps the signature."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import built
import pytest

from capsulekit.cache import Cache, default_cache_dir
from capsulekit.capsule.read import open_capsule

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user and to mount a file system"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="needs mmdebstrap"),
    pytest.mark.skipif(not list(Path("/usr/lib").glob("*/datefudge/datefudge.so")), reason="needs datefudge"),
]
PROGRAM = Path(sys.executable).with_name("capsulekit")
PROBE = built.ROOT / "tests/data/probe/recipe.toml"
PERTURBATIONS = {
    "clock", "hostname", "time zone", "locale", "umask", "user", "path", "cores", "readdir",
}  # fmt: skip


def sh(*argv: str | Path, timeout: float = 300, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, timeout=timeout, **how)  # type: ignore[call-overload, no-any-return]


def public() -> Path:
    return built.author_key().with_suffix(".pub")


def prove(capsule: Path, out: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    return sh(PROGRAM, "prove", capsule, "--key", built.author_key(), "--pubkey", public(), "-o", out, *more)


@functools.cache
def proof_of_the_probe() -> tuple[int, dict[str, object]]:
    """Exit status and verdict for the capsule that writes down what it sees; made once for several tests."""
    out = built.folder() / "probe.verdict.json"
    done = prove(built.capsule(PROBE), out, "--json")
    assert done.stdout == out.read_text(), done.stderr
    return done.returncode, json.loads(done.stdout)


def cold_cache(where: Path, *kept: str) -> Path:
    """A cache with the packages, and of the results only those of the steps that are ``kept``."""
    shutil.copytree(default_cache_dir() / "packages", where / "packages", copy_function=os.link)
    for step in (p for name in kept for p in (default_cache_dir() / "steps").glob(f"{name}-*")):
        shutil.copytree(step, where / "steps" / step.name, copy_function=os.link)
    return where


def below(process: int) -> set[int]:
    """Every process that this one started, or one of them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set[int](), {process}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return found - {process}


def words_of(process: int) -> str:
    """A process's command line; "" when it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def looped(inodes: set[int]) -> list[str]:
    """Loop devices on one of these files (their names are those of another namespace)."""
    lines = sh("losetup", "--list", "--noheadings", "--output", "BACK-INO,NAME").stdout.splitlines()
    return [line for line in lines if int(line.split()[0]) in inodes]


# --- prove


def test_a_shipped_capsule_is_proved_in_every_dimension_and_minisign_checks_the_verdict(tmp_path: Path) -> None:
    capsule, out = built.capsule(built.BUSYBOX), tmp_path / "v.json"
    cache = cold_cache(tmp_path / "cache")
    done = prove(capsule, out, "--cache-dir", cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bytes both times" in done.stdout
    verdict = json.loads(out.read_text())
    assert verdict["same"] is True and verdict["capsule"]["name"] == "test-busybox-1.amd64"
    values = []
    for rebuild in verdict["rebuilds"]:
        assert rebuild["identity"] == verdict["capsule"]["identity"] and rebuild["differing"] == []
        values.append({one["what"]: one["value"] for one in rebuild["perturbations"]})
        # This root's programs are one static busybox, which no library reaches.
        assert [one["what"] for one in rebuild["not_applied"]] == ["clock inside the root"]
        assert set(values[-1]) == PERTURBATIONS
    assert (values[0]["user"], values[1]["user"]) == ("uid 4242", "root of a user namespace")
    assert {what for what in PERTURBATIONS if values[0][what] == values[1][what]} <= {"cores", "locale", "readdir"}
    checked = sh("minisign", "-V", "-m", out, "-p", public())
    assert checked.returncode == 0 and "verdict same capsule test-busybox-1.amd64" in checked.stdout
    assert list((cache / "steps").glob("[!.]*")) == [], "nothing of a proof is kept, and nothing was reused"
    assert [p.name for p in (cache / "tmp").iterdir()] == [".lock"]
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_what_follows_the_surroundings_is_found_out_with_its_script() -> None:
    status, verdict = proof_of_the_probe()
    assert status == 3 and verdict["same"] is False
    for rebuild in verdict["rebuilds"]:  # type: ignore[attr-defined]
        assert rebuild["not_applied"] == []
        members = {one["member"]: one["paths"] for one in rebuild["differing"]}
        assert {"capsule.toml", "layers/rootfs.squashfs"} <= set(members)
        found = {one["path"]: (one["what"], one["owner"]) for one in members["layers/rootfs.squashfs"]}
        expected = {"/etc/seen/day", "/etc/seen/order"} | ({"/etc/seen/cores"} if (os.cpu_count() or 1) > 1 else set())
        assert {path: (["content"], "script look-around.sh") for path in expected} == found


def test_host_zone_locale_umask_and_user_of_the_machine_never_reach_a_root() -> None:
    """They were perturbed (the test before says so), and the script that wrote them down wrote the same."""
    _, verdict = proof_of_the_probe()
    for rebuild in verdict["rebuilds"]:  # type: ignore[attr-defined]
        applied = {one["what"] for one in rebuild["perturbations"]}
        assert {"hostname", "time zone", "locale", "umask", "user", "path"} <= applied
        paths = {one["path"] for member in rebuild["differing"] for one in member["paths"]}
        reached = {"host", "zone", "locale", "umask", "user", "environment"}
        assert not paths & {f"/etc/seen/its-{name}" for name in reached}


def test_a_killed_proof_leaves_nothing_running_or_mounted_and_the_next_command_sweeps(tmp_path: Path) -> None:
    cache = cold_cache(tmp_path / "cache")
    words = ["prove", built.capsule(built.BUSYBOX), "--key", built.author_key(), "--pubkey", public()]
    words += ["-o", tmp_path / "v.json", "--cache-dir", cache]
    with subprocess.Popen([str(w) for w in (PROGRAM, *words)], stdout=subprocess.DEVNULL) as proof:
        started, tries = set[int](), 0
        while sum("-m capsulekit.witness" in words_of(process) for process in started) < 2 and tries < 600:
            time.sleep(0.05)
            started, tries = below(proof.pid), tries + 1
        inodes = {image.stat().st_ino for image in cache.glob("tmp/*/order.img")}
        assert len(looped(inodes)) == 2, "both rebuilds have their file systems by now"
        proof.send_signal(signal.SIGKILL)
    for _ in range(100):
        left = {process: words for process in started if (words := words_of(process))}
        if not looped(inodes) and not left:
            break
        for process in (process for process, words in left.items() if "-m capsulekit.witness" in words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)  # none may go on to its own end
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not looped(inodes) and not left, left
    assert str(tmp_path) not in Path("/proc/mounts").read_text() and not (tmp_path / "v.json").exists()
    Cache(cache)  # what every command opens first
    assert [p.name for p in (cache / "tmp").iterdir()] == [".lock"]


# --- rebuild


def test_a_capsule_and_the_cached_packages_are_all_it_takes_to_make_it_again(tmp_path: Path) -> None:
    capsule, again = built.capsule(built.BUSYBOX), tmp_path / "again.vnfs"
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(capsule, alone / "x.vnfs")
    words = [PROGRAM, "rebuild", "x.vnfs", "-o", again, "--offline", "--pubkey", public(), "--json"]
    done = sh("unshare", "--net", *words, "--cache-dir", cold_cache(tmp_path / "cache"), cwd=alone)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not any(step["reused"] for step in told["steps"] if step["name"] != "fetch packages")
    assert again.read_bytes() == capsule.read_bytes(), "signature and all"
    # A lock of its own making would not do: this is the capsule's.
    with open_capsule(again) as one, open_capsule(capsule) as two:
        assert one.signature_text() == two.signature_text()


def test_a_rebuild_that_differs_names_the_member_and_writes_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    text = PROBE.read_text().replace("test-probe", "test-random").replace("look-around.sh", "random.sh")
    recipe.write_text(text)
    (tmp_path / "random.sh").write_text("#!/bin/sh\ncat /proc/sys/kernel/random/uuid >/etc/random\n")
    capsule = built.capsule(recipe)
    words = [PROGRAM, "rebuild", capsule, "-o", tmp_path / "again.vnfs", "--offline", "--pubkey", public()]
    done = sh(*words, "--cache-dir", cold_cache(tmp_path / "cache", "modules", "initrd"))
    assert done.returncode == 3 and "layers/rootfs.squashfs" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "again.vnfs").exists()


def test_a_package_that_lacks_offline_is_named(tmp_path: Path) -> None:
    words = [PROGRAM, "rebuild", built.capsule(built.BUSYBOX), "-o", tmp_path / "x.vnfs", "--offline"]
    done = sh(*words, "--pubkey", public(), "--cache-dir", tmp_path / "empty")
    assert done.returncode == 1 and "not in the cache" in done.stderr and not (tmp_path / "x.vnfs").exists()
