"""One emulated node from power-on to ready: seconds by step, bytes sent, memory used. Emulated: compare ratios."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.build import RECIPE
from capsulekit.build import BuildOptions, build
from capsulekit.cache import default_cache_dir
from capsulekit.progress import Progress
from capsulekit.stage1 import build_stage1
from capsulekit.stage1recipe import VIRTUAL, shipped_recipe
from capsulekit.trust.minisign import create_key_files
from provisioner.lab.demo import mac_of, steps_text
from provisioner.lab.lab import Lab
from provisioner.lab.site import LabSite


def bench_boot(folder: Path) -> None:
    """Boot the compute capsule."""
    print("Boot of the compute capsule on one emulated node with 1 GB")
    key, capsule, stage1 = folder / "author2", folder / "boot.vnfs", folder / "boot-stage1"
    create_key_files(key, None)
    result = build(BuildOptions(RECIPE, capsule, key, None, False, default_cache_dir()), lambda: b"", Progress())
    build_stage1(shipped_recipe(VIRTUAL), stage1, default_cache_dir(), Progress())
    with Lab(folder / "lab") as lab:
        site = LabSite(folder / "site")
        site.init(lab, stage1, "--default-vnfs", result.name)
        site.command("trust", "add", f"{key}.pub")
        site.command("vnfs", "import", str(capsule))
        for module in ("hostname", "sshkeys"):
            site.command("module", "activate", module)
        lab.serve(site.paths)
        machine = lab.node(mac_of(0), memory=1024)
        started = time.time()
        machine.start()
        site.wait_ready(mac_of(0), 900)
        registry = site.registry
        events = registry.events(mac_of(0))
        registry.close()
        print(steps_text(events, started))
        used = next((e.mem_used_kb for e in reversed(events) if e.state == "ready"), None)
        print(f"  memory used by the running node {(used or 0) / 1024:.0f} MB of 1024, layers held in RAM included")
        link = json.loads(lab.run(["ip", "-json", "-s", "link", "show", machine.machine.cards[-1].tap]))[0]
        sent = link["stats64"]["tx"]["bytes"]
    size = capsule.stat().st_size
    print(f"  bytes sent to the node, everything on its wire {sent / 1e6:.1f} MB (capsule {size / 1e6:.1f} MB)")
