"""What the emulated tests share: the running lab and how to talk to a node's console."""

from __future__ import annotations

import re
from dataclasses import dataclass

from provisioner.lab.lab import Lab
from provisioner.lab.qemu import Node as Machine
from provisioner.lab.site import LabSite

DEBIAN = "e2e-compute-1.amd64"
SMALL = "test-busybox-1.amd64"
PASSWORD = "of all nodes 17"  # root's on Debian nodes, asked by their capsule


@dataclass
class Bench:
    """The running lab: its network, its site, and the machines that were switched on."""

    lab: Lab
    site: LabSite
    debian: Machine
    faulty: Machine
    tight: Machine


def shell(machine: Machine, command: str, timeout: float = 60) -> str:
    """Run a command in the root shell of a node's serial console; its output, without the echo and the prompt."""
    # The marks are made by the shell (quotes removed), so that the echo of the typed line can't be taken for them.
    machine.console.sendline(f"echo BEG''IN; {command}; echo EN''D")
    found = machine.console.expect(r"BEGIN\r?\n((?s:.*?))END\r?\n", timeout)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", found.group(1)).strip()
