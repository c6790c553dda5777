"""How soon a node's changed name is in DNS at 10 000 nodes, each with a lease: a command, a running server, a question.

Beside it what dnsmasq itself takes to read the same lists again, which nobody who uses it can be quicker than.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from benchmarks.measure import CAPSULEKIT, measure
from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.lab.lab import Lab
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import Registry

NODES = 10_000
TURNS = 5
AIM = 1.0  # seconds from the command's end
ADDRESS, DOMAIN = "10.77.0.1", "bench.test"
# Asks until a name is there, or with a minus is not; both run in the lab's network.
LOOK = """
import sys, time
from provisioner.netboot.dnsmasq import answers
address, name, wanted = sys.argv[1:]
print("started", flush=True)
end = time.monotonic() + 60
while answers(address, name, timeout=30) == wanted.startswith("-") and time.monotonic() < end:
    time.sleep(0.02)
if time.monotonic() < end:
    print(time.monotonic(), flush=True)
"""
# Has a process read its lists, and asks it for a name, or for a file by TFTP (RFC 1350, 5), behind them.
RELOAD = """
import os, signal, socket, sys, time
address, pid, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
question = bytes.fromhex("12340100000100000000000001780000010001") if port == 53 else b"\\0\\1x\\0octet\\0"
begin = time.monotonic()
os.kill(pid, signal.SIGHUP)
time.sleep(0.02)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(60)
    s.sendto(question, (address, port))
    s.recv(600)
print(time.monotonic() - begin)
"""


def bench_names(folder: Path) -> None:
    """Rename a node, give it another address, add, replace and delete one."""
    print(f"A node's name in DNS, {NODES} nodes with a lease each, a quarter with fixed addresses")
    with Lab(folder / "names-lab", f"{ADDRESS}/16") as lab:
        paths = _site(folder / "names", lab)
        server = lab.serve(paths, timeout=60)
        took: dict[str, list[tuple[float, float]]] = {}
        for turn in range(TURNS):
            for what, words, name in _steps(turn):
                with _watched(lab, name) as seen:
                    begin = time.monotonic()
                    measure((CAPSULEKIT, "--config-dir", paths.config, "--state-dir", paths.state, "-y", *words))
                    ended = time.monotonic()
                # The server sees the change before the command's process is gone.
                took.setdefault(what, []).append((ended - begin, max(0.0, seen[0] - ended) if seen else 0.0))
        for what, both in ((what, both) for what, both in took.items() if what):
            command, after = (statistics.median(one) for one in zip(*both, strict=True))
            worst = max(after for _, after in both)
            met = "met" if worst <= AIM else "MISSED"
            print(f"  {what:<34} command {command:5.2f} s, then {after:5.2f} s (longest {worst:4.2f}); "
                  f"aim <= {AIM:.0f} s: {met}")  # fmt: skip
        for what, alone in _reloads(server.pid, lab):
            print(f"  {'dnsmasq itself reads its ' + what:<34} {'':20} {statistics.median(alone):5.2f} s"
                  f" (longest {max(alone):4.2f})")  # fmt: skip


def _steps(turn: int) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """What is measured, the command, and the name that must be there after it; with a minus: that must be gone."""
    host, mac = f"n{turn * 1000 + 17:05}", f"52:54:01:00:00:{turn:02X}"
    yield "node set hostname", ("node", "set", "hostname", f"new{turn}", host), f"new{turn}"
    yield "node set hostname, the old one gone", ("node", "set", "hostname", host, f"new{turn}"), f"-new{turn}"
    yield "", ("node", "add", mac, f"late{turn}"), ""
    yield "node set address", ("node", "set", "address", f"10.77.255.{turn + 1}", f"late{turn}"), f"late{turn}"
    yield "", ("node", "add", f"52:54:02:00:00:{turn:02X}", f"spare{turn}"), ""
    yield "", ("node", "set", "address", f"10.77.254.{turn + 1}", f"spare{turn}"), f"spare{turn}"
    yield "node replace", ("node", "replace", f"late{turn}", f"spare{turn}"), f"-spare{turn}"
    yield "node delete", ("node", "delete", f"late{turn}"), f"-late{turn}"


def _site(folder: Path, lab: Lab) -> SitePaths:
    """A site whose stage 1 boots nobody: nobody boots here."""
    stage1 = folder / "stage1"
    stage1.mkdir(parents=True)
    for name in ("vmlinuz", "stage1.img"):
        (stage1 / name).write_bytes(b"nothing")
    record = {
        "format": 1,
        "arch": "amd64",
        "release": "6.1.0",
        "profile": "none",
        "modules": [],
        "firmware_missing": [],
    }
    (stage1 / "stage1.json").write_text(json.dumps(record))
    paths = SitePaths(folder / "etc", folder / "var")
    pool = "10.77.64.0-10.77.200.255"
    init_site(paths, InitRequest(lab.network.bridge, lab.network.address, pool, DOMAIN, stage1=(stage1,)))
    macs = [f"52:54:00:00:{number >> 8:02X}:{number & 255:02X}" for number in range(NODES)]
    registry = Registry(paths.state / "registry.db")
    registry.add_nodes([(mac, None) for mac in macs], defaults=Defaults(node_name="n#####.rack"))
    first = ip_address("10.77.1.0")
    fixed = {mac: str(first + number) for number, mac in enumerate(macs) if number % 4 == 0}
    registry.set_each("address", fixed)
    registry.close()
    pooled, ends = ip_address("10.77.64.0"), int(time.time()) + 40_000
    lines = [
        f"{ends} {mac.lower()} {fixed.get(mac, str(pooled + number))} n{number:05} *\n"
        for number, mac in enumerate(macs)
    ]
    (paths.state / "netboot").mkdir()
    (paths.state / "netboot" / "leases").write_text("".join(lines))
    return paths


@contextmanager
def _watched(lab: Lab, name: str) -> Iterator[list[float]]:
    """While a command runs, ask the master's network for a name; then when (monotonic, one clock for all) it was so."""
    found: list[float] = []
    if not name:
        yield found
        return
    argv = lab.network.inside([sys.executable, "-c", LOOK, ADDRESS, f"{name.removeprefix('-')}.{DOMAIN}", name])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as looker:
        assert looker.stdout
        looker.stdout.readline()  # it has started
        yield found
        found.append(float(looker.stdout.readline() or "inf"))


def _reloads(server: int, lab: Lab) -> Iterator[tuple[str, list[float]]]:
    """What each of the two processes takes: it has one thread, so what is asked meanwhile is answered after it."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    for conf, what, port in (("dns.conf", "names", 53), ("dnsmasq.conf", "addresses", 69)):
        pid = next(child for child in children if conf in Path(f"/proc/{child}/cmdline").read_text())
        yield what, [float(lab.run([sys.executable, "-c", RELOAD, ADDRESS, pid, str(port)])) for _ in range(TURNS)]
