"""The lab's network comes up in a namespace of its own and goes without leaving anything. Needs root, no QEMU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.lab import net
from provisioner.lab.lab import RECORD, Lab, clear_leftovers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
HOLD = """
import sys, time
from pathlib import Path
from provisioner.lab.lab import Lab
with Lab(Path(sys.argv[1])) as lab:
    lab.spawn(["sleep", "600"], lab.workdir / "sleep.log")
    print(lab.network.namespace, flush=True)
    time.sleep(600)
"""


def start_holder(workdir: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a lab with one program in it; and the lab's namespace."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        return holder, holder.stdout.readline().strip()


def test_each_node_gets_a_tap_on_the_bridge_and_nothing_is_left_afterwards(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        for mac in MACS:
            lab.node(mac)
        links = json.loads(lab.run(["ip", "-json", "link"]))
        masters = {link["ifname"]: link.get("master") for link in links}
        assert masters["tap0"] == masters["tap1"] == "br0"
        addresses = json.loads(lab.run(["ip", "-json", "address", "show", "dev", "br0"]))
        assert addresses[0]["addr_info"][0]["local"] == lab.ip
        assert net.exists(lab.network.namespace)
    assert not net.exists(lab.network.namespace)
    assert not (tmp_path / RECORD).exists()


def test_programs_of_the_lab_end_with_it_even_those_that_detached(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        direct = lab.spawn(["sleep", "600"], tmp_path / "log")
        pid = int(lab.run(["sh", "-c", "setsid sleep 601 >/dev/null 2>&1 & echo $!"]))
        assert Path(f"/proc/{pid}").exists()
    assert direct.poll() is not None
    assert net._is_zombie(pid)


def test_an_error_inside_the_lab_removes_it_too(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with pytest.raises(ZeroDivisionError), lab:
        raise ZeroDivisionError
    assert not net.exists(lab.network.namespace)


def test_sigterm_removes_the_lab(tmp_path: Path) -> None:
    holder, namespace = start_holder(tmp_path)
    assert net.exists(namespace)
    holder.terminate()
    assert holder.wait(timeout=20) == 128 + signal.SIGTERM
    assert not net.exists(namespace)


def test_what_a_killed_lab_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    holder, namespace = start_holder(tmp_path)
    holder.kill()
    holder.wait()
    assert net.exists(namespace)
    clear_leftovers(tmp_path)
    assert not net.exists(namespace)


def test_a_record_that_names_no_lab_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"namespace": "../somewhere"}))
    clear_leftovers(tmp_path)
    assert not (tmp_path / RECORD).exists()


def test_the_lab_has_no_way_to_the_outside(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        assert lab.run(["ip", "route", "show", "default"]) == ""
