"""`make bench [ONLY=PART]`, PART as below: prints figures, asserts nothing. Root; about 20 minutes."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.boot import bench_boot
from benchmarks.build import bench_build
from benchmarks.checkins import bench_checkins
from benchmarks.edit import bench_edit
from benchmarks.growth import bench_growth
from benchmarks.measure import Failed
from benchmarks.names import bench_names
from benchmarks.pack import bench_pack
from benchmarks.ram import bench_ram
from benchmarks.registry import bench_registry
from benchmarks.stage1 import bench_stage1


def main() -> None:
    """Run all benchmarks, or the one named."""
    parts = {
        "build": bench_build,
        "pack": bench_pack,
        "memory": bench_growth,
        "stage1": bench_stage1,
        "boot": bench_boot,
        "edit": bench_edit,
        "ram": bench_ram,
        "registry": bench_registry,
        "names": bench_names,
        "checkins": bench_checkins,
    }
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("only", nargs="?", choices=sorted(parts))
    only = parser.parse_args().only
    # Ended from outside, it ends the running command too and removes what was made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="capsulekit-bench-", dir="/var/tmp") as name:
        for part, run in parts.items():
            if only in (None, part):
                try:
                    run(Path(name))
                except Failed as error:
                    sys.exit(f"{part}: {error}")


if __name__ == "__main__":
    main()
