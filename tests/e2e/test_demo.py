"""`make demo` with more than one node, on the small capsule: it tells what it does and leaves nothing running."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import built
import pytest

pytestmark = pytest.mark.timeout(900)


def test_the_demo_boots_several_nodes_and_stops_everything(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "provisioner.lab.demo", "--nodes", "2", "--folder", str(tmp_path / "d")]
    done = subprocess.run(
        [*argv, "--recipe", str(built.BUSYBOX)],
        cwd=built.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("n0000", "n0001"):
        assert re.search(rf"^{name} +ready .*init \S+ · handoff \+\d+ s · ready \+\d+ s$", done.stdout, re.M), (
            done.stdout
        )
    # The duration of every step, for each node.
    for step in ("drivers", "session", "plan", "sums", "layers", "provision", "nodelayer", "kexec"):
        assert len(re.findall(rf"^  {step} +\d+\.\d", done.stdout, re.M)) == 2, done.stdout
    namespace = re.search(r"network namespace (\S+)", done.stdout)
    assert namespace is not None
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert namespace.group(1) not in listed
    for proc in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(tmp_path) not in proc.read_bytes().decode(errors="replace"), proc
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_the_demo_refuses_a_silly_number_of_nodes() -> None:
    argv = [sys.executable, "-m", "provisioner.lab.demo", "--nodes", "0"]
    done = subprocess.run(argv, cwd=built.ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "NODES" in done.stderr
