"""Stage 2's shell under busybox ash, dash and bash (an RPM capsule's sh): a folder in place of /proc, /sys and /dev."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "initramfs-builder"
INIT = SOURCE / "stage2/init"
FILES = [INIT, *sorted(SOURCE.glob("stage2/lib/*.sh")), *sorted(SOURCE.glob("stage2-hybrid/lib/*.sh"))]
SHELLS = {"busybox": ["busybox", "sh"], "dash": ["dash"], "bash": ["bash", "--posix"]}
MAC = "52:54:00:12:34:56"


class Stage2:
    """Every function of stage 2 loaded, as in a hybrid capsule's initrd; ``fake`` stands in for a program."""

    def __init__(self, shell: str, folder: Path) -> None:
        if shutil.which(SHELLS[shell][0]) is None:
            pytest.skip(f"{shell} is not installed")
        self.shell, self.folder = SHELLS[shell], folder
        for name in ("proc/sys/kernel/random", "sys/class/net", "sys/bus", "dev", "run", "root", "layers", "lib",
                     "stack", "bin"):  # fmt: skip
            (folder / name).mkdir(parents=True)
        for file in FILES[1:]:
            shutil.copy(file, folder / "lib")
        (folder / "proc/sys/kernel/random/uuid").write_text("00000007-0000-0000-0000-000000000000\n")
        (folder / "proc/filesystems").write_text("nodev\tproc\n\tsquashfs\n")
        self.cmdline("quiet")
        self.env = {
            "PATH": os.environ["PATH"], "LC_ALL": "C", "CK_SOURCED": "1", "CK_CONSOLE": "console",
            "CK_ROOT": f"{folder}/root", "CK_LAYERS": f"{folder}/layers", "CK_STACK": f"{folder}/stack",
            "CK_LIB": f"{folder}/lib", "CK_PROC": f"{folder}/proc", "CK_DEV": f"{folder}/dev",
            "CK_SYS": f"{folder}/sys", "CK_RUNTIME": f"{folder}/run", "CK_SAID": f"{folder}/said",
            "CK_SHOWN": f"{folder}/run/shown",
        }  # fmt: skip

    def cmdline(self, text: str) -> None:
        """The kernel's command line."""
        (self.folder / "proc/cmdline").write_text(text + "\n")

    def fake(self, name: str, script: str = "") -> None:
        """A program that notes its arguments, one call a line, and then runs ``script``."""
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.folder}/calls"\n{script}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """What the fakes were called with."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def card(self, name: str, mac: str, *, device: bool = True, carrier: str = "1") -> None:
        """A network interface; without a device it is a bond, a bridge or a VLAN."""
        folder = self.folder / "sys/class/net" / name
        folder.mkdir()
        (folder / "address").write_text(mac + "\n")
        (folder / "carrier").write_text(carrier + "\n")
        if device:
            (folder / "device").mkdir()

    @property
    def said(self) -> str:
        """The console."""
        path = self.folder / "dev/console"
        return path.read_text() if path.exists() else ""

    def do(self, script: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a script after everything was sourced."""
        (self.folder / "said").write_text("")
        # As functions: busybox's shell prefers its own applets to any program.
        fakes = "".join(f'{p.name}() {{ {p} "$@"; }}; ' for p in (self.folder / "bin").iterdir())
        text = f". {INIT}; {fakes} stack_lower= BORROWED={self.folder}/borrowed; {script}"
        return subprocess.run(
            [*self.shell, "-c", text, "sh", *args], env=self.env, capture_output=True, text=True, timeout=60
        )

    def out(self, script: str, *args: str) -> str:
        """Its output; the script must end well."""
        done = self.do(script, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reason(self, script: str, *args: str) -> str:
        """Why it failed; it must."""
        done = self.do(script, *args)
        assert done.returncode != 0, done.stdout
        return (self.folder / "said").read_text().strip()
