"""The hybrid layers of capsules as `serve` exports them: a real nfs-ganesha, asked by a small client in a namespace.

This host's kernel can't mount NFS: what a real node makes of it is in tests/e2e/test_hybrid_node.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from netns import Wire
from serving import Server, capsulekit, command, set_site, until
from split_capsule import NAME, layer_of, split_site

from capsulekit.capsule.manifest import HYBRID
from capsulekit.sitepaths import SitePaths
from provisioner.nfs.manager import NfsManager
from provisioner.registry.registry import open_registry
from provisioner.services import nfs as kernel
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

ADDRESS = "10.77.0.1"
CLIENT = Path(__file__).parent.parent / "nfs4_client.py"
FILE = "usr/share/old/home"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    made = split_site(tmp_path, interface="eth0", address=f"{ADDRESS}/24")
    set_site(made, hosts_file="", dns_upstream="")
    return made


@pytest.fixture
def wired(net: Wire) -> Wire:
    """The node's end has an address in the site's network, and one outside it."""
    for address in ("10.77.0.50/24", "10.78.0.50/24"):
        net.on(net.node, "ip", "addr", "add", address, "dev", "eth0")
    net.on(net.master, "ip", "route", "add", "10.78.0.0/24", "dev", "eth0")
    return net


@contextmanager
def master(net: Wire, paths: SitePaths, folder: Path, name: str = "serve") -> Iterator[Server]:
    """`serve` in the master's network, but with this host's mounts, as on a real machine; gone after the block."""
    ready, log = folder / f"{name}.ready", folder / f"{name}.log"
    words = ["nsenter", f"--net=/run/netns/{net.master}", *capsulekit(paths), "serve", "--ready-file", str(ready)]
    with log.open("ab") as out:
        process = subprocess.Popen(words, stderr=out, stdout=out)
    server = Server(process, log)
    try:
        until(lambda: ready.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        ready.unlink(missing_ok=True)


def ask(net: Wire, *words: str, source: str = "10.77.0.50") -> Any:
    """What the client is told."""
    done = net.on(net.node, sys.executable, CLIENT, ADDRESS, *words, source, timeout=90)
    return json.loads(done.stdout)


def nfs(net: Wire, paths: SitePaths) -> dict[str, Any]:
    """What ``serve status`` tells of NFS."""
    found: dict[str, Any] = json.loads(command(net, paths, "serve", "status", "--json").stdout)["nfs"]
    return found


def exported(net: Wire, paths: SitePaths, number: int = 1) -> list[str]:
    """The names of the exported layers, once there are so many."""
    until(lambda: len(nfs(net, paths)["exports"]) == number, 40)
    return list(nfs(net, paths)["exports"])


def layer_mounts(paths: SitePaths) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(paths.state) in line]


def digest(paths: SitePaths) -> str:
    registry = open_registry(paths)
    try:
        return VnfsStore(paths, registry).digests(NAME)[HYBRID]
    finally:
        registry.close()


def test_only_that_layer_is_exported_read_only_and_to_the_sites_network_only(
    wired: Wire, paths: SitePaths, tmp_path: Path
) -> None:
    with master(wired, paths, tmp_path):
        [name] = exported(wired, paths)
        assert name == digest(paths)[:32]
        assert ask(wired, "list", "/") == ["layers"]
        assert ask(wired, "list", "/layers") == [name]
        assert ask(wired, "list", f"/layers/{name}/usr/share") == ["old"]
        assert bytes.fromhex(ask(wired, "read", f"/layers/{name}/{FILE}")) == b"old\n"
        assert ask(wired, "remove", f"/layers/{name}/{FILE}")["error"] == 30
        for path in (str(paths.state), f"/layers/{name}/../..", "/var", f"{paths.state}/registry.db"):
            assert ask(wired, "list", path)["error"] in (2, 10041), path
        # An address outside the site's network sees nothing, under its name or by a handle.
        handle = ask(wired, "handle", f"/layers/{name}/{FILE}")
        assert ask(wired, "list", "/layers", source="10.78.0.50") in ([], {"error": 2, "op": 15})
        assert ask(wired, "again", handle, source="10.78.0.50")["error"] in (13, 70)
        listening = wired.on(wired.master, "ss", "-Hltun").stdout
        assert [line.split()[4] for line in listening.splitlines() if "2049" in line] == [f"[::ffff:{ADDRESS}]:2049"]
        assert not [line for line in listening.splitlines() if line.split()[4].endswith(":111")], "no rpcbind is used"
        status = command(wired, paths, "serve", "status").stdout
        assert "NFS: nfs-ganesha running, process " in status and "1 hybrid layer exported" in status
    assert layer_mounts(paths) == [] and not list((paths.state / "nfs/layers" / ADDRESS).iterdir())


def test_handles_outlive_the_server_the_mount_and_a_kill(wired: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with master(wired, paths, tmp_path):
        [name] = exported(wired, paths)
        handle = ask(wired, "handle", f"/layers/{name}/{FILE}")
    assert layer_mounts(paths) == []
    # The devices that are free are others now.
    spare = tmp_path / "spare.squashfs"
    layer_of(spare, {"x": b"x"})
    loop = subprocess.run(["losetup", "-f", "--show", spare], capture_output=True, text=True, check=True).stdout.strip()
    try:
        with master(wired, paths, tmp_path) as server:
            exported(wired, paths)
            assert bytes.fromhex(ask(wired, "again", handle)) == b"old\n"
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            mounted = layer_mounts(paths)
            assert len(mounted) == 1, "a killed server leaves its mount to the next one"
            until(lambda: "2049" not in wired.on(wired.master, "ss", "-Hltn").stdout)
        with master(wired, paths, tmp_path):
            exported(wired, paths)
            assert layer_mounts(paths) == mounted
            assert bytes.fromhex(ask(wired, "again", handle)) == b"old\n"
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    assert layer_mounts(paths) == []


def test_exports_come_and_go_without_cutting_others(wired: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with master(wired, paths, tmp_path) as server:
        [name] = exported(wired, paths)
        pid = nfs(wired, paths)["ganesha"]["pid"]
        handle = ask(wired, "handle", f"/layers/{name}/{FILE}")
        set_site(paths, transfer="nfs")
        assert command(wired, paths, "serve", "reload").returncode == 0
        until(lambda: "blobs" in ask(wired, "list", "/"))
        assert bytes.fromhex(ask(wired, "again", handle)) == b"old\n"
        assert nfs(wired, paths)["ganesha"]["pid"] == pid
        set_site(paths, nfs="off", transfer="http")
        assert command(wired, paths, "serve", "reload").returncode == 0
        until(lambda: not layer_mounts(paths))
        assert "2049" not in wired.on(wired.master, "ss", "-Hltn").stdout
        assert "nfs-ganesha-died" not in server.log.read_text()


def test_a_ganesha_that_dies_is_started_again(wired: Wire, paths: SitePaths, tmp_path: Path) -> None:
    with master(wired, paths, tmp_path) as server:
        [name] = exported(wired, paths)
        handle = ask(wired, "handle", f"/layers/{name}/{FILE}")
        pid = nfs(wired, paths)["ganesha"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: "nfs-ganesha-restarted" in server.log.read_text(), 30)
        until(lambda: nfs(wired, paths)["ganesha"]["pid"] not in (None, pid), 30)
        until(lambda: "2049" in wired.on(wired.master, "ss", "-Hltn").stdout, 30)
        assert bytes.fromhex(ask(wired, "again", handle)) == b"old\n"


def test_the_public_files_are_offered_and_the_private_ones_never(wired: Wire, paths: SitePaths, tmp_path: Path) -> None:
    set_site(paths, transfer="nfs")
    registry = open_registry(paths)
    store = VnfsStore(paths, registry)
    members = [member for one in store.list() for member in store.members(one.name)]
    registry.close()
    public = {member.sha256 for member in members if not member.private}
    private = {member.sha256 for member in members if member.private}
    assert private
    with master(wired, paths, tmp_path):
        exported(wired, paths)
        until(lambda: "blobs" in ask(wired, "list", "/"))
        assert set(ask(wired, "list", "/blobs")) == public
        assert ask(wired, "read", f"/blobs/{next(iter(private))}") == {"error": 2, "op": 15}
        one = next(member for member in members if member.name == "recipe.toml")
        assert bytes.fromhex(ask(wired, "read", f"/blobs/{one.sha256}"))
        assert (
            f"Transfer: by NFS from {ADDRESS}:/blobs, {len(public)} files"
            in command(wired, paths, "serve", "status").stdout
        )


def test_the_kernels_server_is_told_of_each_mounted_layer(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That server can't run here: its exports file is read, and an exportfs records its calls."""
    program, tell = tmp_path / "bin/exportfs", kernel.export_layers
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(kernel, "export_layers", lambda address, lines: tell(address, lines, tmp_path / "exports.d"))
    set_site(paths, nfs="kernel", transfer="nfs")
    registry = open_registry(paths)
    manager = NfsManager(paths, load_site(paths), registry, VnfsStore(paths, registry), lambda *_, **__: None)

    async def once() -> str:
        await manager.look()
        text = (tmp_path / f"exports.d/capsulekit-{ADDRESS}.exports").read_text()
        assert (paths.state / "nfs/layers" / ADDRESS / digest(paths)[:32] / FILE).read_bytes() == b"old\n"
        await manager.stop()
        return text

    lines = asyncio.run(once()).splitlines()[1:]
    registry.close()
    name = digest(paths)[:32]
    assert [line.split()[0] for line in lines] == [
        f"{paths.state}/nfs/layers/{ADDRESS}/{name}", f"{paths.state}/nfs/blobs",
    ]  # fmt: skip
    assert all(line.split()[1].startswith("10.77.0.0/24(ro,all_squash,") for line in lines)
    assert (tmp_path / "calls").read_text() == "-ra\n-ra\n"
    assert layer_mounts(paths) == [] and not list((tmp_path / "exports.d").iterdir())
    assert not manager.ganesha.started


def test_without_ganesha_it_is_said_what_to_install(
    wired: Wire, paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A PATH of links without it, and no look into the system's own folders.
    words = (tmp_path / "site" / "sitecustomize.py",)
    words[0].parent.mkdir()
    words[0].write_text("import provisioner.nfs.ganesha as g\ng.PROGRAM = 'ganesha.nfsd.missing'\n")
    monkeypatch.setenv("PYTHONPATH", str(words[0].parent))
    with master(wired, paths, tmp_path) as server:
        until(lambda: nfs(wired, paths)["problems"])
        [problem] = nfs(wired, paths)["problems"]
        assert problem.startswith("nodes get no files by NFS: ganesha.nfsd.missing is not installed")
        assert "apt-get install nfs-ganesha nfs-ganesha-vfs" in problem
        assert "apt-get install nfs-ganesha nfs-ganesha-vfs" in server.log.read_text()
        assert command(wired, paths, "serve", "status").returncode == 0, "everything else is served"
        done = command(wired, paths, "vnfs", "import", str(tmp_path / "split.vnfs"))
        assert "apt-get install nfs-ganesha nfs-ganesha-vfs" in done.stderr


def test_two_masters_of_one_site_each_have_their_own(wired: Wire, paths: SitePaths, tmp_path: Path) -> None:
    """Both on this machine, with one state folder: neither takes away what the other one's nodes read."""
    wired.on(wired.master, "ip", "addr", "add", "10.77.0.2/24", "dev", "eth0")
    second = SitePaths(tmp_path / "config2", paths.state)
    subprocess.run(["cp", "-a", paths.config, second.config], check=True)
    set_site(second, address="10.77.0.2/24", dhcp="off", dns_upstream="")
    places = [paths.state / "nfs/layers" / address for address in (ADDRESS, "10.77.0.2")]
    with master(wired, paths, tmp_path):
        [name] = exported(wired, paths)
        handle = ask(wired, "handle", f"/layers/{name}/{FILE}")
        # serve.json and dnsmasq's files are one machine's: of the second one only its NFS part is run here.
        other = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{wired.master}", sys.executable, "-c", SECOND, str(second.config),
             str(second.state)],
        )  # fmt: skip
        try:
            until(lambda: len(layer_mounts(paths)) == 2, 60)
            assert (places[1] / name / FILE).read_bytes() == b"old\n"
        finally:
            other.terminate()
            other.wait(30)
        assert len(layer_mounts(paths)) == 1
        assert bytes.fromhex(ask(wired, "again", handle)) == b"old\n"
        assert (places[0] / name / FILE).read_bytes() == b"old\n"


SECOND = """
import asyncio, signal, sys
from pathlib import Path
from capsulekit.sitepaths import SitePaths
from provisioner.nfs.manager import NfsManager
from provisioner.registry.registry import open_registry
from provisioner.server.log import log
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore
paths = SitePaths(Path(sys.argv[1]), Path(sys.argv[2]))
registry = open_registry(paths)
manager = NfsManager(paths, load_site(paths), registry, VnfsStore(paths, registry), log)
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    task = asyncio.create_task(manager.run())
    await stop.wait()
    task.cancel()
    await manager.stop()
asyncio.run(main())
"""
