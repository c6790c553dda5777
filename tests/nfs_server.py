"""A real NFS 4 server (nfs-ganesha) inside a lab, which gives a capsule's hybrid layer as a master does."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from capsulekit.capsule.manifest import HYBRID
from capsulekit.capsule.read import open_capsule
from provisioner.lab.lab import Lab

# Owners as numbers: a node has no table of the server's names. The short lease and grace are for the test's sake: after
# a restart a server lets nobody in until the grace is over.
CONFIG = """
NFS_CORE_PARAM {{ Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSV4 {{
    Lease_Lifetime = 5; Grace_Period = 8; Only_Numeric_Owners = true; Minor_Versions = 1, 2;
    RecoveryBackend = fs; RecoveryRoot = {folder}/recovery;
}}
EXPORT {{
    Export_Id = 1; Path = {folder}/layer; Pseudo = /hybrid; Protocols = 4; Transports = TCP; Access_Type = RO;
    Squash = Root_Squash; SecType = sys; FSAL {{ Name = VFS; }}
}}
"""
PORT = 2049


class NfsServer:
    """The layer mounted, the server not yet started; ``folder`` is its own."""

    def __init__(self, lab: Lab, capsule: Path, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.process: subprocess.Popen[bytes] | None = None
        for name in ("recovery", "layer"):
            (folder / name).mkdir(parents=True)
        with open_capsule(capsule) as opened, (folder / "hybrid.squashfs").open("wb") as out:
            opened.copy_member(HYBRID, out)
        (folder / "ganesha.conf").write_text(CONFIG.format(folder=folder))

    def __enter__(self) -> Self:
        subprocess.run(
            ["mount", "-t", "squashfs", "-o", "ro,loop", self.folder / "hybrid.squashfs", self.layer], check=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        subprocess.run(["umount", self.layer], check=True)

    @property
    def layer(self) -> Path:
        """Where the layer is mounted."""
        return self.folder / "layer"

    def start(self) -> None:
        """Start it and wait until it listens."""
        argv = ["ganesha.nfsd", "-F", "-f", f"{self.folder}/ganesha.conf", "-L", f"{self.folder}/log"]
        self.process = self.lab.spawn([*argv, "-p", f"{self.folder}/pid"], self.folder / "out")
        deadline = time.monotonic() + 30
        while f":{PORT}" not in self.lab.run(["ss", "-ltn"]):
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        """End it, as a reboot of its machine would; fine when it does not run."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
