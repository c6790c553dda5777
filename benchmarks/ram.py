"""Memory of a running node by the form of its root: layers in memory, a part on the network, unpacked as peers do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.boot import make_stage1
from benchmarks.build import RECIPE
from benchmarks.measure import measure, megabytes, new_key
from benchmarks.peers import cpio_gzip
from benchmarks.trees import built, unpacked
from capsulekit.cache import default_cache_dir
from provisioner.lab.demo import mac_of
from provisioner.lab.lab import Lab
from provisioner.lab.site import LabSite
from provisioner.registry.model import Event

MEMORY = 2048  # MB of each node
TIMEOUT = 900.0  # seconds
# The same root for all; what peers' trees need to be a tree that boots by itself is in it.
FULL = f"""
extends = ["{RECIPE.absolute()}"]

[capsule]
name = "ram-full"
version = "1"

[packages]
include = ["acl", "nfs-common"]
"""
HYBRID = (
    FULL.replace("ram-full", "ram-hybrid")
    + """
[hybridize]
paths = ["/usr/share", "/usr/lib/locale", "/usr/lib/python3*", "/usr/lib/x86_64-linux-gnu/perl*", "/usr/lib/gcc*"]
"""
)
# Printed by the peer's node once it is up; ours tells the master the same difference. Several times: getty hangs up
# whoever has the terminal open when it starts.
REPORT = """[Unit]
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/report

[Install]
WantedBy=graphical.target multi-user.target
"""
TELL = """#!/bin/sh
for n in 1 2 3; do
    sleep 5
    { grep -E '^Mem(Total|Available)' /proc/meminfo; echo ram-is-told; } >/dev/ttyS0
done
"""


def bench_ram(folder: Path) -> None:
    """Three boots of one root."""
    print(f"Memory in use on a running node of {MEMORY} MB (MemTotal - MemAvailable), one root in three forms")
    capsules = {}
    for name, text in (("ram-full", FULL), ("ram-hybrid", HYBRID)):
        recipe = folder / f"{name}.toml"
        recipe.write_text(text)
        capsules[name] = built(recipe, folder, default_cache_dir())
    with Lab(folder / "ram-lab") as lab:
        site = LabSite(folder / "ram-site")
        site.init(lab, make_stage1(folder / "ram-stage1"))
        site.command("trust", "add", f"{new_key(folder)}.pub")
        for number, (name, capsule) in enumerate(capsules.items()):
            site.command("vnfs", "import", str(capsule))
            site.command("node", "add", mac_of(number), name)
            site.command("node", "set", "vnfs", name, name)
        lab.serve(site.paths)
        for number, name in enumerate(capsules):
            used, sent = _ours(lab, site, number)
            _print(f"capsulekit, {name.removeprefix('ram-')}", used, sent)
        _print("unpacked in memory (kernel + cpio.gz)", *_peer(lab, capsules["ram-full"], folder))


def _print(name: str, used: float, sent: float) -> None:
    print(f"  {name:<50} {used:7.0f} MB in use, {sent:6.1f} MB fetched for it")


def _ours(lab: Lab, site: LabSite, number: int) -> tuple[float, float]:
    machine = lab.node(mac_of(number), memory=MEMORY)
    machine.start()
    # The second report: what starts late has started by then.
    node = site.wait(mac_of(number), lambda _node, events: len(_ready(events)) > 0, TIMEOUT, "ready")
    registry = site.registry
    events = registry.events(node.nodeid)
    registry.close()
    machine.stop()
    fetched = next(e.detail for e in events if e.step == "layers" and e.status == "ok")
    size = re.search(r"([0-9.]+) MB", fetched)
    return (_ready(events)[-1].mem_used_kb or 0) / 1000, float(size[1]) if size else 0.0


def _ready(events: list[Event]) -> list[Event]:
    return [event for event in events if event.state == "ready"]


def _peer(lab: Lab, capsule: Path, folder: Path) -> tuple[float, float]:
    """The whole root as the kernel's own initramfs, as Warewulf 4 and others boot it."""
    tree = unpacked(capsule, folder / "ram-tree")
    (tree / "etc/systemd/system/report.service").write_text(REPORT)
    (tree / "usr/local/sbin/report").write_text(TELL)
    (tree / "usr/local/sbin/report").chmod(0o755)
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "report.service").symlink_to("../report.service")
    (tree / "init").symlink_to("sbin/init")
    kernel, image = folder / "ram-kernel", folder / "ram.cpio.gz"
    shutil.copyfile(next((tree / "boot").glob("vmlinuz-*")), kernel)
    measure(cpio_gzip(tree, image))
    shutil.rmtree(tree)
    machine = lab.node(mac_of(9), memory=MEMORY, kernel=(kernel, image, "console=ttyS0,115200"))
    machine.start()
    machine.console.expect(r"ram-is-told", TIMEOUT)
    machine.stop()
    told = {key: int(kb) for key, kb in re.findall(r"Mem(Total|Available): +(\d+) kB", machine.console.text)}
    return (told["Total"] - told["Available"]) / 1000, megabytes(image)
