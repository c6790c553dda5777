"""The node's own layer: the agent with a curl that needs nothing of the root, the machine-id, and the upper's marks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from node_shell import SOURCE, Node, a_plan, node

__all__ = ["node"]  # the fixture
KEY = 'header = "Authorization: Bearer secret"\n'


@pytest.fixture
def root(node: Node, tmp_path: Path) -> Path:
    """An empty new root, and a stage 1 that has all its parts."""
    (node.run / "plan").write_text(a_plan())
    (node.run / "session.curl").write_text(KEY)
    (node.site / "ca.pem").write_text("the authority\n")
    lib = tmp_path / "lib"
    shutil.copytree(SOURCE / "stage1/agent", lib / "agent")
    node.env["CK_LIB"] = str(lib)
    (tmp_path / "root/usr/lib/systemd/system").mkdir(parents=True)
    return tmp_path / "root"


def install(node: Node) -> None:
    # The shell's functions come from the source, what they install from CK_LIB.
    node.out("write_identity; install_agent")


def test_the_agents_curl_runs_with_its_own_libraries_and_loader(node: Node, root: Path) -> None:
    install(node)
    home = root / "usr/lib/capsulekit"
    argv: list[str | Path] = [home / "ld.so", "--inhibit-cache", "--library-path", home / "lib", home / "curl"]
    shown = subprocess.run([*argv, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert shown.startswith("curl ") and "https" in shown
    listed = subprocess.run([argv[0], "--list", *argv[1:]], capture_output=True, text=True, timeout=30).stdout
    # Each library that it loads is its own; the loader is there already.
    paths = [line.split()[2] for line in listed.splitlines() if " => " in line and not line.strip().startswith("/")]
    assert paths and all(Path(path).parent == home / "lib" for path in paths), listed
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home / "lib").iterdir()} == {0o644}


def test_a_list_of_libraries_that_the_builder_made_is_used_as_it_is(node: Node, root: Path, tmp_path: Path) -> None:
    (tmp_path / "lib/libx.so.1").write_text("x")
    (tmp_path / "lib/curl.closure").write_text(f"{tmp_path}/lib/libx.so.1\n")
    install(node)
    assert [path.name for path in (root / "usr/lib/capsulekit/lib").iterdir()] == ["libx.so.1"]


def test_only_root_reads_the_key_and_the_agent_is_started(node: Node, root: Path) -> None:
    (root / "etc/capsulekit/agent").mkdir(parents=True)
    (root / "etc/capsulekit/agent/session").write_text("older")
    install(node)
    conf = root / "etc/capsulekit/agent"
    assert (conf / "session").read_text() == KEY
    assert stat.S_IMODE((conf / "session").stat().st_mode) == 0o600
    assert (conf / "ca.pem").read_text() == "the authority\n"
    assert (conf / "start").read_text() == "#!/bin/sh\nexec /usr/lib/capsulekit/capsule-agent\n"
    wants = root / "etc/systemd/system/multi-user.target.wants/capsule-agent.service"
    assert wants.resolve() == root / "etc/systemd/system/capsule-agent.service"
    assert "secret" not in "".join(path.read_text() for path in root.rglob("*.service"))


def test_a_root_without_systemd_gets_no_unit(node: Node, root: Path) -> None:
    shutil.rmtree(root / "usr/lib/systemd")
    install(node)
    assert not (root / "etc/systemd").exists()
    assert (root / "etc/capsulekit/agent/start").exists()


def test_the_machine_id_is_the_registrys_whatever_was_there(node: Node, root: Path, tmp_path: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/machine-id").symlink_to(tmp_path / "outside")
    install(node)
    assert (root / "etc/machine-id").read_text() == "0a" * 16 + "\n"
    assert stat.S_IMODE((root / "etc/machine-id").stat().st_mode) == 0o444
    assert not (tmp_path / "outside").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes device nodes and trusted attributes")
def test_whiteouts_and_opaque_marks_are_packed_and_no_other_mark_of_overlay(node: Node, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "opaque").mkdir(parents=True)
    upper.chmod(0o751)
    (upper / "file").write_text("text\n")
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "opaque", "trusted.overlay.origin", b"\0\1")
    os.setxattr(upper / "file", "user.kept", b"1")
    out = tmp_path / "node.squashfs"
    node.out('pack_upper "$1" "$2"', str(upper), str(out))
    target = tmp_path / "unpacked"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", target, out], check=True, capture_output=True, timeout=60)
    gone = (target / "gone").stat()
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    assert os.listxattr(target / "opaque") == ["trusted.overlay.opaque"]
    assert os.getxattr(target / "file", "user.kept") == b"1"
    assert stat.S_IMODE(target.stat().st_mode) == 0o751
