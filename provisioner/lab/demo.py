"""`make demo`: the whole road for real: a capsule built, a master in its own network, nodes PXE-booted to ready."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from capsulekit.build import BuildOptions, build
from capsulekit.cache import default_cache_dir
from capsulekit.errors import CapsulekitError
from capsulekit.progress import Progress
from capsulekit.stage1 import build_stage1
from capsulekit.stage1recipe import VIRTUAL, shipped_recipe
from capsulekit.trust.minisign import create_key_files
from provisioner.lab.lab import Lab
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite
from provisioner.registry.model import Event

BOOT_TIMEOUT = 600.0  # seconds for one node; software emulation on a busy machine is slow
MEMORY = 1024  # MB a node has
RECIPE = Path("recipes/debian-12-compute.toml")


def mac_of(number: int) -> str:
    """The MAC of the demo's node ``number``, in QEMU's own range."""
    return f"52:54:00:C0:DE:{number:02X}"


def run_demo(nodes: int, folder: Path, recipe: Path) -> None:
    """Build, import, serve, boot; prints as it goes. Raises CapsulekitError; leaves nothing running."""
    if os.geteuid() != 0:
        raise CapsulekitError("the demo needs root: it makes a network namespace", hint="run it with sudo")
    folder.mkdir(parents=True, exist_ok=True)
    print("1. A capsule from", recipe)
    capsule, stage1 = folder / "demo.vnfs", folder / "stage1"
    built = Progress(live=sys.stderr.isatty())
    key = folder / "author"
    if not key.exists():
        create_key_files(key, None)
    options = BuildOptions(recipe, capsule, key, None, False, default_cache_dir())
    result = build(options, lambda: b"", built)
    print(built.table())
    print(f"  {result.name}: {result.size / 1e6:.1f} MB, identity {result.identity}")
    print("2. Stage 1")
    assembled = Progress(live=sys.stderr.isatty())
    made = build_stage1(shipped_recipe(VIRTUAL), stage1, default_cache_dir(), assembled)
    print(assembled.table())
    print(f"  vmlinuz {made.kernel_size / 1e6:.1f} MB, stage1.img {made.image_size / 1e6:.1f} MB")
    place = folder / "site"
    shutil.rmtree(place, ignore_errors=True)
    with Lab(folder / "lab") as lab:
        print("3. A master in the network namespace", lab.network.namespace)
        site = LabSite(place, lambda line: print("  #", line))
        site.init(lab, stage1, "--default-vnfs", result.name)
        site.command("trust", "add", str(key) + ".pub")
        site.command("vnfs", "import", str(capsule))
        for module in ("hostname", "sshkeys"):
            site.command("module", "activate", module)
        lab.serve(site.paths)
        print(f"4. {nodes} new node{'s' if nodes > 1 else ''}, {MEMORY} MB each, powered on")
        _boot(lab, site, nodes)
    print("Everything that was started has been stopped; logs are in", folder / "lab")


def _boot(lab: Lab, site: LabSite, count: int) -> None:
    machines: dict[str, tuple[Machine, float]] = {}
    for number in range(count):
        machine = lab.node(mac_of(number), memory=MEMORY)
        machine.start()
        machines[mac_of(number)] = (machine, time.time())
    for mac, (machine, started) in machines.items():
        try:
            node = site.wait_ready(mac, BOOT_TIMEOUT)
        except CapsulekitError as error:
            tail = "\n".join(machine.console.text.splitlines()[-15:])
            raise CapsulekitError(f"{error.message}\nIts console ends with:\n{tail}") from None
        print(f"  {node.hostname} is ready {time.time() - started:.1f} s after power-on")
    print(site.command("node", "status"))
    print(site.command("node", "summary"))
    registry = site.registry
    for mac, (_, started) in machines.items():
        print(steps_text(registry.events(mac), started))
    registry.close()


def steps_text(events: list[Event], started: float) -> str:
    """The durations of a boot's steps as lines of text; ``started`` is the power-on in epoch seconds."""
    lines = ["  step                     seconds"]
    states = [e for e in events if e.kind == "state"]
    for event in (e for e in events if e.kind == "step" and e.status == "ok"):
        lines.append(f"  {event.step:<22} {event.seconds or 0:9.1f}  {event.detail}".rstrip())
    lines += [f"  power-on to {e.state:<10} {e.time - started:9.1f}" for e in states[:3]]
    peak = max((e.mem_used_kb or 0 for e in events), default=0)
    lines.append(f"  peak memory of stage 1 {peak / 1024:9.0f} MB")
    return "\n".join(lines)


def main() -> int:
    """The command line of the demo."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("out/demo"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    asked = parser.parse_args()
    if not 1 <= asked.nodes <= 16:
        print("ERROR: NODES must be a number from 1 to 16", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        run_demo(asked.nodes, asked.folder, asked.recipe)
    except CapsulekitError as error:
        print(f"ERROR: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
