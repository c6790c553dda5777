"""How the agent comes onto a node: its programs, and whichever init the capsule has starts it."""

from __future__ import annotations

import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from node_shell import AGENT, SHELLS, SOURCE, Node, a_plan, node

__all__ = ["node"]  # the fixture
INIT = AGENT.parent / "capsule-agent.init"


@pytest.fixture
def root(node: Node, tmp_path: Path) -> Path:
    (node.run / "plan").write_text(a_plan())
    (node.run / "session.curl").write_text('header = "Authorization: Bearer secret"\n')
    (node.site / "ca.pem").write_text("the authority\n")
    shutil.copytree(SOURCE / "stage1/agent", tmp_path / "lib/agent")
    node.env |= {"CK_LIB": str(tmp_path / "lib"), "CK_BUSYBOX": shutil.which("busybox") or ""}
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


def test_the_agent_brings_the_programs_that_a_minimal_root_lacks(node: Node, root: Path) -> None:
    node.out("install_agent")
    home = root / "usr/lib/capsulekit/bin"
    done = subprocess.run([home / "sha256sum"], input=b"x", capture_output=True, check=True)
    assert done.stdout.startswith(b"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    for name in ("awk", "cmp", "stat", "timeout", "xargs"):
        assert (home / name).readlink() == Path("busybox")


def test_it_brings_what_lists_the_roots_changes(node: Node, root: Path) -> None:
    node.out("install_agent")
    listing = root / "usr/lib/capsulekit/capsule-tree"
    assert stat.S_IMODE(listing.stat().st_mode) == 0o755
    needed = [line for line in listing.read_text().splitlines() if line.startswith("# needs:")]
    programs = {path.name for path in (root / "usr/lib/capsulekit/bin").iterdir()}
    assert set(needed[0].split()[2:]) <= programs
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert programs - {"busybox"} <= set(listed), "what it brings is really in it"


def test_without_a_busybox_the_roots_own_programs_must_do(node: Node, root: Path) -> None:
    node.env["CK_BUSYBOX"] = "/nonexistent"
    node.out("install_agent")
    assert not (root / "usr/lib/capsulekit/bin").exists()
    assert (root / "usr/lib/capsulekit/capsule-agent").exists()


@pytest.mark.parametrize(("scripts", "links"), [("etc/init.d", "etc"), ("etc/rc.d/init.d", "etc/rc.d")])
def test_sysvinit_starts_it_last_and_stops_it_first(node: Node, root: Path, scripts: str, links: str) -> None:
    (root / scripts).mkdir(parents=True)
    for _ in range(2):
        node.out("install_agent")
    script = root / scripts / "capsule-agent"
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    found = {p.name for p in (root / links).glob("rc?.d/*")}
    assert found == {"S99capsule-agent", "K01capsule-agent"}
    assert all(p.resolve() == script for p in (root / links).glob("rc?.d/*"))
    assert not (root / "etc/systemd").exists()


def test_systemd_goes_before_an_init_d_that_is_there_too(node: Node, root: Path) -> None:
    (root / "etc/init.d").mkdir()
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    node.out("install_agent")
    assert (root / "etc/systemd/system/multi-user.target.wants/capsule-agent.service").is_symlink()
    assert not (root / "etc/init.d/capsule-agent").exists()


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_the_init_script_starts_one_agent_and_stops_it(shell: str, tmp_path: Path) -> None:
    agent = tmp_path / "capsule-agent"
    agent.write_text('#!/bin/sh\necho began >>"$0.log"\nwhile :; do sleep 1; done\n')
    agent.chmod(0o755)
    env = {"CK_AGENT": str(agent), "CK_AGENT_PIDFILE": str(tmp_path / "run/pid")}

    def do(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SHELLS[shell], str(INIT), word], env=env, capture_output=True, text=True, timeout=30, check=False
        )

    assert do("status").returncode == 3
    assert (do("start").returncode, do("start").returncode) == (0, 0)
    try:
        end = time.monotonic() + 10
        while not Path(f"{agent}.log").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert do("status").stdout.startswith("capsule-agent runs (")
        assert Path(f"{agent}.log").read_text() == "began\n"
    finally:
        assert do("stop").returncode == 0
    assert do("status").returncode == 3
    assert not (tmp_path / "run/pid").exists()
    assert do("nonsense").returncode == 2
