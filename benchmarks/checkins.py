"""Check-ins of running nodes: a second, and how long one takes when 512 are under way all the time.

A check-in is what the agent does once a minute: POST /v1/state/ready over TLS, answered when it is on the disk. The
agent starts a curl for each, hence a new connection; the same with kept connections shows what TLS's handshake costs.
The load comes from the same machine and takes its share of the cores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from capsulekit.capsule.manifest import Layer, Manifest
from capsulekit.capsule.write import Member, write_capsule
from capsulekit.files import sha256_bytes
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from capsulekit.trust.minisign import SecretKey
from provisioner import pki
from provisioner.initsite import InitRequest, init_site
from provisioner.lab.lab import Lab
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry
from provisioner.server import tickets
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

NODES = 1_000
AT_ONCE = 512
SECONDS = 20.0
AIM, AIM_P99 = 1000.0, 0.5  # a second; seconds
PERCEUS = "Perceus 1.9.3's perceusd: about 20/s, p99 19-25 s (quoted: no machine here can run it)"
AUTHOR = SecretKey(b"bench---", bytes(range(32)))


def bench_checkins(folder: Path) -> None:
    """A real `capsulekit serve` with its registry in SQLite, and agents in a process beside it."""
    print(f"Check-ins, {AT_ONCE} at once from the same two cores, {NODES} nodes, SQLite. {PERCEUS}")
    with Lab(folder / "checkins-lab", "10.77.0.1/16") as lab:
        paths = _site(folder / "checkins", lab)
        keys = _sessions(paths, folder / "keys")
        server = lab.serve(paths, timeout=60)
        for told, how in (("new connections, as the agent", ()), ("kept connections", ("--kept",))):
            begin = _cpu(server.pid)
            done = json.loads(lab.run(_load(paths, keys, how), timeout=SECONDS + 60))
            number, rate = max(done["count"], 1), done["count"] / done["seconds"]
            used, theirs = (_cpu(server.pid) - begin) / number, done["cpu"] / number
            met = "met" if rate >= AIM and done["p99"] < AIM_P99 else "MISSED"
            aim = f"aim >= {AIM:.0f}/s, p99 < {AIM_P99} s: {met}"
            print(f"  {told:<30} {rate:6.0f}/s  p50 {done['p50']:.3f} s  p99 {done['p99']:.3f} s  {aim}")
            cpu = f"{used * 1000:.2f} ms of the server's, {theirs * 1000:.2f} ms of the agents'"
            print(f"  {'':<30} CPU for each: {cpu}; {1 / used:.0f}/s would fill one core of the server's")
            if done["failed"]:
                print(f"  {'':<30} FAILED: {done['failed']}")


def _load(paths: SitePaths, keys: Path, how: tuple[str, ...]) -> list[str]:
    config = load_site(paths)
    words = [config.ip, str(config.tls_port), str(pki.ca_path(paths)), str(keys)]
    words += ["--seconds", str(SECONDS), "--at-once", str(AT_ONCE), *how]
    return [sys.executable, "-m", "benchmarks.checkin_load", *words]


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used (proc(5), stat, 14 and 15: in ticks of 1/100 s)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _site(folder: Path, lab: Lab) -> SitePaths:
    """A site whose stage 1 boots nobody, with a capsule that is one, though nothing is in it."""
    stage1 = folder / "stage1"
    stage1.mkdir(parents=True)
    for name in ("vmlinuz", "stage1.img"):
        (stage1 / name).write_bytes(b"nothing")
    record = {"format": 1, "arch": "amd64", "release": "6.1.0", "profile": "none", "modules": []}
    (stage1 / "stage1.json").write_text(json.dumps(record | {"firmware_missing": []}))
    paths = SitePaths(folder / "etc", folder / "var")
    pool = "10.77.64.0-10.77.200.255"
    init_site(paths, InitRequest(lab.network.bridge, lab.network.address, pool, "bench.test", stage1=(stage1,)))
    return paths


def _sessions(paths: SitePaths, out: Path) -> Path:
    """Nodes that boot a capsule, with a session each; their keys, one a line."""
    registry = open_registry(paths)
    VnfsStore(paths, registry).import_file(_capsule(paths))
    macs = [f"52:54:00:00:{number >> 8:02X}:{number & 255:02X}" for number in range(NODES)]
    defaults = Defaults(node_name="n#####", vnfs=registry.capsules()[0].name)
    registry.add_nodes([(mac, None) for mac in macs], defaults=defaults)
    with registry.db.write():
        keys = [tickets.open_session(registry, mac, "10.77.0.1") for mac in macs]
    registry.activate("hostname", ["init/all"])
    registry.close()
    out.write_text("".join(f"{key}\n" for key in keys))
    return out


def _capsule(paths: SitePaths) -> Path:
    """A capsule of a few bytes, whose author the site trusts."""
    out, public = paths.state / "bench.vnfs", paths.state / "bench.pub"
    content = {
        "recipe.toml": b"", "capsule.lock": b"", "boot/vmlinuz": b"kernel", "boot/initrd.img": b"initrd",
        "layers/rootfs.squashfs": b"layer",
    }  # fmt: skip
    layer = Layer("layers/rootfs.squashfs", 5, sha256_bytes(b"layer"), 4096)
    manifest = Manifest(
        "bench", "1.0", "amd64", "debian", "12", 1700000000, "/sbin/init", "quiet", "ab" * 32, "6.1.0", (layer,)
    )
    write_capsule(out, manifest, [Member(name, data) for name, data in content.items()], AUTHOR)
    public.write_text(AUTHOR.public.file_text)
    Keyring(paths.trust).add(public)
    return out
