"""`vnfs livesync` and `node drift` on running roots: a real sshd, rsync, agent and overlay for each node."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from livesync_bench import NAME, SHELLS, Bench, LiveNode, base_root, bench

from provisioner.registry.registry import open_registry

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, and makes network namespaces"),
    pytest.mark.timeout(300),
]


def fill(root: Path) -> Path:
    """What the first generation has beside its programs."""
    for name, text in {
        "etc/app.conf": "port=1000\n", "etc/keep.conf": "kept\n", "etc/old.conf": "old\n", "etc/skel/a": "a\n",
        "opt/tool": "left\n", "usr/share/gone/one": "1\n", "usr/share/gone/two": "2\n", "usr/share/dir/x": "x\n",
        "etc/edited": "as it was\n", "boot/vmlinuz": "kernel\n", "etc/mode": "m\n", "etc/new\nline é": "odd\n",
        "etc/timezone": "old\n",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        os.utime(root / name, (1, 1))
    (root / "usr/bin/capable").write_bytes(b"#!/bin/sh\n")
    (root / "etc/link").symlink_to("app.conf")
    return root


def change(folder: Path) -> Path:
    """The layer of the second generation: every way in which a file can differ."""
    for name, text in {
        "etc/app.conf": "port=2000\n",  # same size, same time
        "etc/new": "new\n", "etc/acl": "acl\n", "etc/edited": "as it should be\n", "etc/mode": "m\n",
        "etc/new\nline é": "ODD\n", "opt/tool": "new\n", "boot/vmlinuz": "kernel 2\n", "etc/timezone": "new\n",
        "#top": "t\n", ";top": "t\n", "-top": "t\n", " top ": "t\n", "caf\udce9": "t\n",
        "usr/share/fresh/deep/file": "f\n",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\nada:x:5:5::/:/bin/sh\n",
        "usr/share/dir": "a file now\n",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        os.utime(folder / name, (1, 1))
    (folder / "etc/mode").chmod(0o4750)
    os.chown(folder / "etc/new", 7, 8)
    (folder / "etc/link").symlink_to("new")
    os.link(folder / "etc/new", folder / "etc/new2")
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/capable").write_bytes(b"#!/bin/sh\n")
    # cap_net_raw=p: <linux/capability.h>, struct vfs_cap_data, revision 2
    os.setxattr(folder / "usr/bin/capable", "security.capability", bytes.fromhex("0000000200200000" + "00" * 12))
    for name in ("etc/old.conf", "usr/share/gone"):
        os.mknod(folder / name, stat.S_IFCHR, os.makedev(0, 0))
    (folder / "etc/skel").mkdir()
    os.setxattr(folder / "etc/skel", "trusted.overlay.opaque", b"y")
    (folder / "etc/skel/b").write_text("b\n")
    return folder


ACL = b"etc/acl\taccess\tu::rw-,u:77:r--,g::r--,m::r--,o::---\n"


@pytest.fixture(scope="module", params=SHELLS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(base_root(tmp_path_factory.mktemp("root") / request.param, request.param))


@pytest.fixture
def live(root: Path, tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        made.install(root)
        yield made


@pytest.fixture(scope="module")
def dash_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(base_root(tmp_path_factory.mktemp("root") / "dash", "dash"))


@pytest.fixture
def one_shell(dash_root: Path, tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        made.install(dash_root)
        yield made


def told(live: Bench, node: LiveNode) -> dict[str, str]:
    registry = open_registry(live.paths)
    try:
        outline: dict[str, str] = json.loads(registry.booted()[node.mac].plan)
        return outline
    finally:
        registry.close()


def files(live: Bench, node: LiveNode) -> dict[str, int]:
    """What `node drift` says of a node's files."""
    done = live.run("--json", "node", "drift", node.name)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert record["files"]["problem"] == "", record
    counts: dict[str, int] = record["files"]["counts"]
    return counts


def test_a_running_node_gets_what_its_capsule_holds_now_and_nothing_else_is_touched(
    live: Bench, tmp_path: Path
) -> None:
    node = live.node()
    first = told(live, node)["identity"]
    for name, text in {"etc/edited": "edited here\n", "etc/own": "its own\n", "usr/share/dir/mine": "mine\n"}.items():
        (node.root / name).write_text(text)
    (node.root / "etc/keep.conf").unlink()
    row = live.generation(change(tmp_path / "edit"), ACL, more={"boot/vmlinuz": b"another kernel"})
    registry = open_registry(live.paths)
    registry.activate("timezone", ["ready/all"])
    registry.close()

    dry = live.run("vnfs", "livesync", NAME, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, ""), dry
    assert {"  send /etc/app.conf", "  send /etc/keep.conf", "  send /etc/new%0Aline%20%C3%A9",
            "  left, as --delete was not given /etc/old.conf"} <= set(dry.stdout.splitlines()), dry.stdout  # fmt: skip
    assert (node.root / "etc/app.conf").read_text() == "port=1000\n" and told(live, node)["identity"] == first

    done = live.run("-y", "vnfs", "livesync", NAME)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "; changed on the node and overwritten: /etc/edited, /etc/keep.conf; needs a reboot for the kernel" in line
    assert "left by the skip list" in line and "of the kernel" in line and "to be deleted with --delete" in line
    read = {name: (node.root / name).read_text() for name in
            ("etc/app.conf", "etc/edited", "etc/keep.conf", "etc/new\nline é", "etc/skel/b", "etc/own")}  # fmt: skip
    assert read == {
        "etc/app.conf": "port=2000\n", "etc/edited": "as it should be\n", "etc/keep.conf": "kept\n",
        "etc/new\nline é": "ODD\n", "etc/skel/b": "b\n", "etc/own": "its own\n",
    }  # fmt: skip
    new, mode = (node.root / "etc/new").stat(), (node.root / "etc/mode").stat()
    assert (new.st_uid, new.st_gid, new.st_nlink, int(new.st_mtime)) == (7, 8, 2, 1)
    assert stat.S_IMODE(mode.st_mode) == 0o4750
    assert b"M\0\0\0" in os.getxattr(node.root / "etc/acl", "system.posix_acl_access"), "user 77"
    assert os.getxattr(node.root / "usr/bin/capable", "security.capability")[:4] == b"\0\0\0\2"
    assert (node.root / "etc/link").readlink() == Path("new")
    # The skip list, modules' files, the kernel's, and what would have to be deleted.
    assert (node.root / "opt/tool").read_text() == "left\n"
    assert "ada" not in (node.root / "etc/passwd").read_text()
    assert (node.root / "etc/hostname").read_text() == "made by a module\n"
    assert (node.root / "etc/timezone").read_text() == "old\n" and "1 made by its modules" in line
    for name in ("#top", ";top", "-top", " top ", "caf\udce9"):
        assert (node.root / name).read_text() == "t\n"
    assert (node.root / "boot/vmlinuz").read_text() == "kernel\n"
    assert (node.root / "etc/old.conf").exists() and (node.root / "usr/share/dir/x").exists()
    outline = told(live, node)
    assert (outline["identity"], outline["under"]) == (row.identity, first)

    registry = open_registry(live.paths)
    (change_of,) = [one for one in registry.changes(node.mac) if one.key == "livesync"]
    assert (change_of.old, change_of.new, change_of.command) == (first, row.identity, "vnfs livesync")
    registry.close()

    (node.root / "usr/share/dir/mine").unlink()
    (node.root / "usr/share/gone/mine").write_text("mine\n")
    done = live.run("-y", "vnfs", "livesync", NAME, node.name, "--delete")
    assert done.returncode == 0, done.stderr
    assert not (node.root / "etc/old.conf").exists()
    assert [one.name for one in (node.root / "usr/share/gone").iterdir()] == ["mine"], "its own"
    assert (node.root / "usr/share/dir").read_text() == "a file now\n"
    assert not (node.root / "etc/skel/a").exists() and (node.root / "etc/own").exists()
    assert live.run("-y", "vnfs", "livesync", NAME).stdout.startswith(f"{node.name}: nothing to do")


def test_drift_says_what_was_changed_by_content_and_what_a_reboot_would_change(live: Bench, tmp_path: Path) -> None:
    node = live.node()
    assert live.run("-y", "vnfs", "livesync", NAME).returncode == 0
    live.generation(change(tmp_path / "edit"))
    (node.root / "etc/app.conf").write_text("port=9999\n")
    assert live.run("-y", "vnfs", "livesync", NAME, "--delete").returncode == 0
    # What the skip list and the kernel kept from being sent is not as the generation has it, and so it is said.
    assert files(live, node) == {"changed": 3}
    tree = [*live.command()[:4], "nsenter", "-t", str(node.process.pid), "-m", "-r"]
    (node.root / "etc/app.conf").write_text("port=3000\n")
    (node.root / "etc/mine").write_text("mine\n")
    (node.root / "etc/new2").unlink()
    (node.root / "etc/mode").chmod(0o600)
    listed = subprocess.run(
        [*tree, "sh", "/usr/lib/capsulekit/capsule-tree", "print"], capture_output=True, check=True, timeout=60
    )
    registry = open_registry(live.paths)
    registry.record_tree(node.mac, listed.stdout)
    registry.close()
    assert files(live, node) == {"added": 1, "changed": 4, "deleted": 1, "mode or owner": 1}
    said = live.run("node", "drift", "-v", node.name).stdout.splitlines()
    assert f"{node.name}: files: changed: /etc/app.conf" in said and f"{node.name}: files: added: /etc/mine" in said
    assert f"{node.name}: files: mode or owner: /etc/mode" in said
    assert not [line for line in said if "identity" in line], "it was brought to the generation it would boot"


def test_each_node_that_fails_is_named_and_the_others_are_done(one_shell: Bench, tmp_path: Path) -> None:
    good, bare, stranger = one_shell.node(), one_shell.node(without="usr/bin/rsync"), one_shell.node(keys=False)
    dead, other, down = one_shell.node(started=False), one_shell.node(started=False), one_shell.node(started=False)
    registry = open_registry(one_shell.paths)
    registry.set_nodes("vnfs", "tiny-1.0.amd64", [other.mac])
    from provisioner.catalog import site_catalog
    from provisioner.server.desk import Desk
    from provisioner.siteconf import load_site
    from provisioner.vnfs.store import VnfsStore

    store = VnfsStore(one_shell.paths, registry)
    desk = Desk(one_shell.paths, load_site(one_shell.paths), registry, site_catalog(one_shell.paths), store)
    desk.hand_out(other.mac)
    registry.record_state(down.mac, "init", "")
    registry.close()
    one_shell.generation(change(tmp_path / "edit"))
    everyone = [node.name for node in one_shell.nodes]
    done = one_shell.run("-y", "vnfs", "livesync", NAME, *everyone)
    assert done.returncode == 4, done
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [good.name]
    said = done.stderr
    assert f"{bare.name}: failed: rsync is not installed on it" in said
    assert f"{stranger.name}: failed: its SSH host key is not the one that this site made for it" in said
    assert f"{dead.name}: failed: ssh: connect to host" in said
    assert f"{other.name}: failed: it runs tiny-1.0.amd64" in said
    assert f"{down.name}: skipped: it is not up (init)" in said
    assert (good.root / "etc/app.conf").read_text() == "port=2000\n"
    assert (bare.root / "etc/app.conf").read_text() == "port=1000\n"
    assert (stranger.root / "etc/app.conf").read_text() == "port=1000\n"
    done = one_shell.run("-y", "vnfs", "livesync", NAME, dead.name)
    assert done.returncode == 1
    records = json.loads(one_shell.run("--json", "-y", "vnfs", "livesync", NAME, good.name, dead.name).stdout)
    assert [(one["node"], one["status"]) for one in records] == [(good.name, "same"), (dead.name, "failed")]


def test_without_a_yes_nothing_changes_and_without_a_node_that_is_up_it_says_so(
    one_shell: Bench, tmp_path: Path
) -> None:
    done = one_shell.run("-y", "vnfs", "livesync", NAME)
    assert (done.returncode, "is up" in done.stderr) == (1, True)
    node = one_shell.node()
    one_shell.generation(change(tmp_path / "edit"))
    done = one_shell.run("vnfs", "livesync", "live")
    assert done.returncode == 1 and f"To be changed while running: {node.name}" in done.stderr
    assert (node.root / "etc/app.conf").read_text() == "port=1000\n"


def test_killed_on_the_way_it_leaves_whole_files_and_the_next_one_goes_on(one_shell: Bench, tmp_path: Path) -> None:
    node = one_shell.node()
    first = told(one_shell, node)["identity"]
    folder = change(tmp_path / "edit")
    for number in range(40):
        (folder / f"etc/big{number:02d}").write_bytes(bytes([number]) * 500_000)
    row = one_shell.generation(folder)
    argv = one_shell.command("-y", "vnfs", "livesync", NAME, "--delete")
    running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (node.root / "etc/big03").exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    for path in (node.root / "etc").glob("big*"):
        assert path.stat().st_size == 500_000
    assert told(one_shell, node)["identity"] == first
    done = one_shell.run("-y", "vnfs", "livesync", NAME, "--delete")
    assert done.returncode == 0, done.stderr
    assert len(list((node.root / "etc").glob("big*"))) == 40
    assert told(one_shell, node)["identity"] == row.identity
    assert not [line for line in subprocess.run(["losetup", "-l"], capture_output=True, text=True).stdout.splitlines()
                if str(one_shell.paths.state) in line and "views" in line]  # fmt: skip


def test_what_a_node_was_synced_to_stays_as_long_as_what_it_booted(one_shell: Bench, tmp_path: Path) -> None:
    node = one_shell.node(started=False)
    synced = one_shell.generation(change(tmp_path / "edit"))
    registry = open_registry(one_shell.paths)
    assert registry.record_synced(node.mac, synced.identity, told=registry.booted()[node.mac].time)
    (tmp_path / "third/etc").mkdir(parents=True)
    (tmp_path / "third/etc/third").write_text("3\n")
    one_shell.generation(tmp_path / "third")
    lines = json.loads(one_shell.run("--json", "vnfs", "history", NAME).stdout)
    found = lines if isinstance(lines, list) else lines["history"]
    assert [one["nodes"] for one in found] == [[node.name], [node.name], []]
    done = one_shell.run("-y", "vnfs", "delete", NAME, "--generation", "2")
    assert done.returncode == 0 and node.name in done.stdout + done.stderr, done
    with one_shell.store() as store:
        folder = store.generation(NAME, synced.identity)
        assert all(store.blob(one).exists() for one in store.digests(NAME, synced.identity).values())
    registry.record_booted(node.mac, "{}")
    registry.close()
    assert one_shell.run("-y", "vnfs", "delete", NAME, "--keep", "0").returncode == 0
    assert not folder.exists()


@pytest.mark.parametrize("how", ["late", "interrupted", "killed"])
def test_nothing_of_it_runs_on(one_shell: Bench, tmp_path: Path, how: str) -> None:
    node = one_shell.node()
    one_shell.generation(change(tmp_path / "edit"))
    (node.root / "usr/bin/rsync").unlink()
    (node.root / "usr/bin/rsync").write_text("#!/bin/sh\n: >/run/began\nexec sleep 300\n")
    (node.root / "usr/bin/rsync").chmod(0o755)
    argv = one_shell.command("-y", "vnfs", "livesync", NAME, "--timeout", "8" if how == "late" else "100")
    mark, env = f"{tmp_path}/capsulekit-livesync-".encode(), {**os.environ, "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    deadline = time.monotonic() + 60
    while not (node.root / "run/began").exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.01)
    if how != "late":
        running.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert how != "late" or (running.returncode == 1 and b"did not finish within 8 s" in said), said
    while left := [one for one in Path("/proc").glob("[0-9]*/cmdline") if mark in told_by(one)]:
        assert time.monotonic() < deadline, [told_by(one) for one in left]
        time.sleep(0.05)


def told_by(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended
        return b""


def test_a_node_that_lies_about_its_files_is_refused(one_shell: Bench, tmp_path: Path) -> None:
    node, endless = one_shell.node(), one_shell.node()
    one_shell.generation(change(tmp_path / "edit"))
    for one, text in ((node, "echo capsulekit-tree 1; echo node; echo ../x f 0644 0 0 1 -; echo upper; echo end"),
                      (endless, "exec cat /dev/zero")):  # fmt: skip
        (one.root / "usr/lib/capsulekit/capsule-tree").write_text(f"#!/bin/sh\n{text}\n")
    done = one_shell.run("-y", "vnfs", "livesync", NAME)
    assert done.returncode == 1
    assert f"{node.name}: failed: the list of files has a line that is none, line 3" in done.stderr
    assert f"{endless.name}: failed: it sent more than" in done.stderr
    assert "Traceback" not in done.stderr
