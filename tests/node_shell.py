"""The node's shell under busybox ash and dash: a folder in place of /run, every function of stage 1 loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "initramfs-builder"
LIB = SOURCE / "stage1" / "lib"
AGENT = SOURCE / "stage1" / "agent" / "capsule-agent"
STAGE2 = SOURCE / "stage2" / "init"
SHELL_FILES = [SOURCE / "stage1" / "init", STAGE2, AGENT, *sorted(LIB.glob("*.sh"))]
SHELLS = {"busybox": ["busybox", "sh"], "dash": ["dash"]}
# Order of sourcing as in stage1/init.
PARTS = ["say", "clock", "memory", "step", "drivers", "devices", "address", "network", "sources", "master", "plan",
         "fetch", "disk", "nfs", "sums", "cpio", "compose", "layers", "scripts", "nodelayer", "handoff"]  # fmt: skip
MAC = "52:54:00:12:34:56"
DIGEST = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b", "c", "d", "e")}


# What would change the machine that runs the tests fails, unless a test puts its own in place: a mistake in the shell,
# or a mutation of it, must not set this machine's clock or take its network down.
HARMLESS = """
date() { [ "${1:-}" != -s ] || return 1; command date "$@"; }
for one in ip kexec reboot udhcpc; do eval "$one() { echo '$one: not in a test' >&2; return 1; }"; done
"""


class Node:
    """A folder that stands for the node's /run, and a shell with every function loaded."""

    def __init__(self, shell: list[str], folder: Path) -> None:
        self.shell = shell
        self.run = folder / "ck"
        self.run.mkdir(mode=0o700)
        self.site = folder / "site"
        (self.site / "keys").mkdir(parents=True)
        (self.site / "masters").write_text("http://a https://a\n")
        (self.site / "order").write_text("listed\n")
        (self.site / "console").write_text("locked\n")
        self.proc = folder / "proc"
        (self.proc / "sys/kernel/random").mkdir(parents=True)
        (self.proc / "uptime").write_text("12.05 3.00\n")
        (self.proc / "mounts").write_text("proc /proc proc rw 0 0\n")
        (self.proc / "cmdline").write_text(f"quiet ck.mac={MAC.lower()} ck.ticket=abc ck.macx=no\n")
        (self.proc / "meminfo").write_text("MemTotal:     491520 kB\nMemFree:   1 kB\nMemAvailable:    412672 kB\n")
        self.env = {
            "PATH": os.environ["PATH"], "LC_ALL": "C", "CK_RUN": str(self.run), "CK_SITE": str(self.site),
            "CK_PROC": str(self.proc), "CK_CONSOLE": str(folder / "console"), "CK_INITRD": str(folder / "initrd"),
            "CK_CAPSULE": str(folder / "capsule"), "CK_LIB": str(LIB), "CK_DISK": str(folder / "disk"),
            "CK_RESOLV": str(folder / "resolv.conf"), "CK_NET": str(folder / "net"), "CK_NEWROOT": str(folder / "root"),
            "CK_STACK": str(folder / "s"), "CK_OFFERED": str(folder / "offered"),
        }  # fmt: skip

    def do(self, script: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a script after everything was sourced, with ``set -eu`` as on the node."""
        lines = [
            "set -eu",
            *(f". {LIB}/{part}.sh" for part in PARTS),
            HARMLESS,
            "DEBUG=0 QUEUED=0 SENT=0 STEP=test",
            script,
        ]
        return subprocess.run([*self.shell, "-c", "\n".join(lines), "sh", *args], env=self.env,
                              capture_output=True, text=True, timeout=60)  # fmt: skip

    def out(self, script: str, *args: str) -> str:
        """Its output; the script must end well."""
        done = self.do(script, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reason(self, script: str, *args: str) -> str:
        """The reason it left; the script must fail."""
        (self.run / "reason").unlink(missing_ok=True)
        done = self.do(script, *args)
        assert done.returncode != 0, done.stdout
        return (self.run / "reason").read_text().strip()


@pytest.fixture(params=sorted(SHELLS))
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    if shutil.which(SHELLS[request.param][0]) is None:
        pytest.skip(f"{request.param} is not installed")
    return Node(SHELLS[request.param], tmp_path)


def a_plan(**changes: str | None) -> str:
    """A well-formed plan; a keyword replaces the line that starts with it (None: leaves it out)."""
    lines = {
        "plan": "plan 1", "nodeid": f"nodeid {MAC}", "hostname": "hostname n0001", "cluster": "cluster -",
        "group": "group cluster", "vnfs": "vnfs mini-1.0.amd64", "machine_id": "machine-id " + "0a" * 16,
        "time": "time 1700000000", "identity": f"identity {DIGEST['e']}", "key": "key RW" + "A" * 54,
        "comment": "comment capsule mini 1.0 amd64 recipe " + "0" * 64, "debug": "debug 0", "init": "init /sbin/init",
        "kargs": "kargs console=tty0 quiet", "vmlinuz": f"file boot/vmlinuz {DIGEST['a']} 1000 public",
        "initrd": f"file boot/initrd.img {DIGEST['b']} 2000 public",
        "toml": f"file capsule.toml {DIGEST['c']} 300 public",
        "rootfs": f"file layers/rootfs.squashfs {DIGEST['d']} 4096 public",
        "layer": "layer layers/rootfs.squashfs 9000",
    }  # fmt: skip
    extra = changes.pop("extra", None)
    assert set(changes) <= set(lines)
    kept = [str(changes.get(k, v)) for k, v in lines.items() if k not in changes or changes[k] is not None]
    return "\n".join([*kept, *([extra] if extra else []), "end"]) + "\n"


def check(node: Node, plan: str | bytes) -> str:
    """Why the plan is refused, or "" when it is taken."""
    path = node.run / "plan"
    path.write_bytes(plan if isinstance(plan, bytes) else plan.encode())
    done = node.do(f'plan_check "{path}" {MAC}')
    return "" if done.returncode == 0 else (node.run / "reason").read_text().strip()
