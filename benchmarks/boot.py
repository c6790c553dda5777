"""One emulated node from power-on to ready: seconds by step, bytes sent, memory used. Emulated: compare ratios."""

from __future__ import annotations

import json
import tarfile
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
from provisioner.registry.model import Event


def bench_boot(folder: Path) -> None:
    """Boot the compute capsule."""
    print("Boot of the compute capsule on one emulated node with 1 GB")
    key, capsule = folder / "author2", folder / "boot.vnfs"
    create_key_files(key, None)
    result = build(BuildOptions(RECIPE, capsule, key, None, False, default_cache_dir()), lambda: b"", Progress())
    stage1 = make_stage1(folder / "boot-stage1")
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
        print(_start_and_peak(events, capsule))
        used = next((e.mem_used_kb for e in reversed(events) if e.state == "ready"), None)
        print(f"  memory used by the running node {(used or 0) / 1024:.0f} MB of 1024, layers held in RAM included")
        link = json.loads(lab.run(["ip", "-json", "-s", "link", "show", machine.machine.card.tap]))[0]
        sent = link["stats64"]["tx"]["bytes"]
    size = capsule.stat().st_size
    print(f"  bytes sent to the node, everything on its wire {sent / 1e6:.1f} MB (capsule {size / 1e6:.1f} MB)")


def make_stage1(out: Path) -> Path:
    """The shipped stage 1 for virtual machines, in ``out``."""
    build_stage1(shipped_recipe(VIRTUAL), out, default_cache_dir(), Progress())
    return out


def _start_and_peak(events: list[Event], capsule: Path) -> str:
    """From the kernel's start to the plan, and stage 1's peak beside the bytes of the layers it held."""
    asked = next(e for e in events if e.kind == "state" and e.state == "init")
    plan, layers = (next(e for e in events if e.step == step and e.status == "ok") for step in ("plan", "layers"))
    with tarfile.open(capsule) as members:
        held = sum(m.size for m in members if m.name.startswith("layers/")) / 1024
    peak = max(e.mem_used_kb or 0 for e in events if e.state != "ready")
    before = plan.mem_used_kb or 0
    start = (asked.seconds or 0) + (plan.seconds or 0)  # the request is within the plan's step
    return "\n".join(
        (
            f"  kernel start to plan   {start:9.1f}  at most",
            f"  peak of the handoff    {peak / held:9.1f} x the {held / 1024:.0f} MB of the layers, all memory in use",
            f"  beyond the plan's      {(peak - before) / held:9.1f} x: {before / 1024:.0f} MB were in use then, "
            f"{(layers.mem_used_kb or 0) / 1024:.0f} MB with the layers",
        )
    )
