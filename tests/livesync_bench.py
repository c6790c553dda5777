"""Running nodes without machines: an overlay root as stage 2 leaves it, with a real sshd, rsync and agent in it.

Each has a mount namespace of its own, which ends with its sshd; all have one network namespace, where the command line
is run too. The capsule is small, real and signed; its generations are layers made on the spot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from netns import namespace
from own_programs import copy_programs, merged_root
from small_capsule import AUTHOR, CONTENT, layer, manifest
from small_site import make_site

from capsulekit.capsule.manifest import Layer
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.files import sha256_file
from capsulekit.sitepaths import SitePaths
from provisioner.catalog import site_catalog
from provisioner.hostkeys import files_for
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import open_registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.generation import Part, new_generation, stored, switch
from provisioner.vnfs.place import placing
from provisioner.vnfs.store import VnfsStore

NAME = "live-1.0.amd64"
AGENT = Path(__file__).resolve().parents[1] / "initramfs-builder/stage1/agent"
SHELLS = ("busybox", "dash", "bash")
# What capsule-tree and a livesync run there, beside rsync.
APPLETS = (
    "awk", "cat", "chmod", "cut", "find", "mkdir", "mv", "readlink", "rm", "rmdir", "sha256sum", "sh", "sleep", "sort",
    "stat", "tr", "xargs",
)  # fmt: skip
PROGRAMS = ("usr/sbin/sshd", "usr/bin/rsync", "usr/bin/busybox", "usr/bin/dash", "usr/bin/bash")
# sh NODE-FOLDER OPTIONS... : what stage 2 does, and then sshd in place of an init.
START = """
set -eu
cd "$1"
mount --make-rprivate /
mkdir -p stack root
mount -t tmpfs tmpfs stack
mkdir stack/u stack/w
lower= n=0
while read -r image; do
    mkdir "stack/$n"
    mount -t squashfs -o ro,loop "$image" "stack/$n"
    lower=${lower:+$lower:}stack/$n
    n=$((n + 1))
done <layers
options=redirect_dir=off,metacopy=off,index=off,xino=off
mount -t overlay -o "lowerdir=$lower,upperdir=stack/u,workdir=stack/w,$options" overlay root
for name in proc dev; do mount --rbind "/$name" "root/$name"; done
mount -t tmpfs tmpfs root/run
mkdir -m 755 root/run/sshd
S=root/run/capsulekit-stack
mkdir -m 700 $S
for name in u n c b m; do mkdir $S/$name; done
mount --bind stack/u $S/u
mount --bind stack/0 $S/n
if [ "$n" -gt 2 ]; then mount -t overlay -o "ro,lowerdir=${lower#*:},$options" overlay $S/c
else mount --bind stack/1 $S/c; fi
mount -t overlay -o "ro,lowerdir=$lower,$options" overlay $S/b
mount --bind root $S/m
address=$2
exec chroot root /usr/sbin/sshd -D -e -f /dev/null -p 22 -o "ListenAddress=$address" -o UsePAM=no -o StrictModes=no \
    -o PidFile=none -o HostKey=/etc/ssh/ssh_host_ed25519_key -o AuthorizedKeysFile=/root/.ssh/authorized_keys
"""


def squashfs(folder: Path, out: Path) -> Path:
    """A layer of what is in a folder, overlay's marks and all."""
    tar = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(folder), "-cf", "-", "."]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packed:
        argv = ["mksquashfs", "-", str(out), "-tar", "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level",
                "1"]  # fmt: skip
        subprocess.run(argv, stdin=packed.stdout, check=True, capture_output=True)
    assert packed.returncode == 0
    return out


def base_root(folder: Path, shell: str) -> Path:
    """A root that a node can be reached in; ``shell`` is its /bin/sh."""
    root = merged_root(folder)
    copy_programs(root, PROGRAMS)
    (root / "usr/bin/sh").symlink_to(shell)
    for name in APPLETS:
        if not (root / "usr/bin" / name).is_symlink():
            (root / "usr/bin" / name).symlink_to("busybox")
    for name in ("proc", "dev", "run", "tmp", "root", "etc/ssh", "var/log", "srv"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "root").chmod(0o700)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    return root


@dataclass
class LiveNode:
    """A node that runs: its root as its sshd sees it."""

    name: str
    mac: str
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.process.pid}/root")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Bench:
    """A site with the capsule NAME, whose nodes are started by ``node``."""

    def __init__(self, folder: Path, where: str) -> None:
        self.folder, self.where = folder, where
        self.paths: SitePaths = make_site(folder / "site")
        self.nodes: list[LiveNode] = []
        self.layers = 0

    def install(self, root: Path, acl: bytes = b"") -> InstalledCapsule:
        """Make the capsule of a root and install it."""
        image = squashfs(root, self.folder / "base.squashfs")
        content = {**CONTENT, "layers/rootfs.squashfs": image.read_bytes(), "layers/rootfs.acl": acl}
        del content["layers/modules.squashfs"]
        layers = (layer("layers/rootfs.squashfs", content, acl="layers/rootfs.acl"),)
        told = replace(manifest(), name="live", layers=layers)
        members = [Member(name, data) for name, data in content.items()]
        write_capsule(self.folder / "live.vnfs", told, members, AUTHOR)
        with self.store() as store:
            return store.import_file(self.folder / "live.vnfs")

    def generation(self, folder: Path, acl: bytes | None = None, drop: tuple[str, ...] = (),
                   more: Mapping[str, bytes] | None = None) -> InstalledCapsule:  # fmt: skip
        """One more layer, of what is in a folder, on what nodes boot."""
        self.layers += 1
        path = f"layers/{self.layers:02d}-edit"
        image = squashfs(folder, self.folder / f"edit{self.layers}.squashfs")
        with self.store() as store, store.lock(), placing(store, "make a generation") as placed:
            base = stored(store, store.get(NAME), store.get(NAME).identity)
            made = Layer(f"{path}.squashfs", image.stat().st_size, sha256_file(image), 4096,
                         acl=None if acl is None else f"{path}.acl")  # fmt: skip
            told = replace(base.manifest, layers=(made, *base.manifest.layers))
            parts = [Part(made.path, image, False), *(Part(name, data, False) for name, data in (more or {}).items())]
            if acl is not None:
                parts.append(Part(f"{path}.acl", acl, False))
            row = new_generation(store, placed, base, told, parts, drop=drop)
            switch(store, row, base=base.row.identity, kind="edit")
        return row

    @contextmanager
    def store(self) -> Iterator[VnfsStore]:
        registry = open_registry(self.paths)
        try:
            yield VnfsStore(self.paths, registry)
        finally:
            registry.close()

    def node(self, *, started: bool = True, without: str = "", keys: bool = True) -> LiveNode:
        """Register a node and boot it from the current generation; ``without`` a program of its root."""
        number = len(self.nodes)
        mac, address = f"52:54:00:77:00:{number:02X}", f"127.0.1.{number + 1}"
        place = self.folder / f"node{number}"
        own = place / "own"
        (own / "etc/ssh").mkdir(parents=True)
        with self.store() as store:
            from provisioner.registry.defaults import load_defaults

            registry = open_registry(self.paths)
            row = registry.add_node(mac, defaults=load_defaults(self.paths))
            registry.set_nodes("vnfs", NAME, [mac])
            Desk(self.paths, load_site(self.paths), registry, site_catalog(self.paths), store).hand_out(mac)
            registry.record_state(mac, "init", address)
            registry.record_state(mac, "handoff", address)
            registry.record_state(mac, "ready", address)
            images = [store.blob(one.sha256) for one in store.manifest(NAME).layers]
            registry.close()
        self._own_layer(own, mac, keys)
        if without:
            (own / without).parent.mkdir(parents=True, exist_ok=True)
            os.mknod(own / without, 0o020000, os.makedev(0, 0))
        (place / "layers").write_text("".join(f"{one}\n" for one in (squashfs(own, place / "own.squashfs"), *images)))
        node = LiveNode(
            row.hostname, mac, address, self._start(place, address) if started else _nobody(), place / "log"
        )
        self.nodes.append(node)
        return node

    def _own_layer(self, own: Path, mac: str, keys: bool) -> None:
        """What modules and stage 1 make at boot."""
        files = files_for(self.paths, mac if keys else "52:54:00:FF:FF:FF")
        (own / "root/.ssh").mkdir(parents=True)
        (own / "root").chmod(0o700)
        (own / "root/.ssh/authorized_keys").write_bytes(files.pop("authorized_keys"))
        for name, data in files.items():
            (own / "etc/ssh" / name).write_bytes(data)
            (own / "etc/ssh" / name).chmod(0o600)
        (own / "etc/hostname").write_text("made by a module\n")
        home = own / "usr/lib/capsulekit"
        home.mkdir(parents=True)
        shutil.copy(AGENT / "capsule-tree", home)
        if not keys:
            with self.store():
                files_for(self.paths, mac)  # the site knows others than those it has

    def _start(self, place: Path, address: str) -> subprocess.Popen[bytes]:
        with (place / "log").open("wb") as log:
            argv = [
                "ip",
                "netns",
                "exec",
                self.where,
                "unshare",
                "--mount",
                "sh",
                "-c",
                START,
                "sh",
                str(place),
                address,
            ]
            process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while b"Server listening" not in (place / "log").read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, (place / "log").read_text()
            time.sleep(0.05)
        return process

    def command(self, *words: str) -> list[str]:
        entry = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()"]
        place = ["--config-dir", str(self.paths.config), "--state-dir", str(self.paths.state)]
        return ["ip", "netns", "exec", self.where, *entry, *place, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line, where the nodes can be reached; no terminal."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )


def _nobody() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["true"])
    process.wait()
    return process


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """The bench, and the end of all its nodes."""
    with namespace() as where:
        made = Bench(folder, where)
        try:
            yield made
        finally:
            for node in made.nodes:
                if node.process.poll() is None:
                    node.stop()
