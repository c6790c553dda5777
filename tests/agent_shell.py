"""The node's agent in a folder: its settings, its /run and a root of its own, under any system's /bin/sh."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

from node_shell import AGENT
from node_shell import SHELLS as STAGE_1
from small_site import MAC, Running

from provisioner import pki

# bash: the Red Hat family's sh.
SHELLS = {**STAGE_1, "bash": ["bash", "--posix"]}


class Agent:
    """One agent beside a running master; ``root`` is where its scripts write."""

    def __init__(self, shell: str, folder: Path, site: Running, key: str, more_masters: str = "") -> None:
        self.shell = SHELLS[shell]
        self.run, self.root, self.conf = folder / "run", folder / "root", folder / "conf"
        self.conf.mkdir(parents=True)
        self.root.mkdir()
        (self.conf / "masters").write_text(f"{more_masters}{site.http} {site.https}\n")
        (self.conf / "ca.pem").write_bytes(pki.ca_path(site.site.desk.paths).read_bytes())
        (self.conf / "session").write_text(f'header = "Authorization: Bearer {key}"\n')
        (self.conf / "session").chmod(0o600)
        (self.run.parent / "bin").mkdir()
        self.env = {
            "PATH": f"{self.run.parent / 'bin'}:{os.environ['PATH']}", "CK_AGENT_CONF": str(self.conf),
            "CK_AGENT_RUN": str(self.run), "CK_AGENT_CURL": "curl", "CK_AGENT_ROOT": str(self.root),
            "CK_AGENT_SOURCED": "1",
        }  # fmt: skip

    def stub(self, name: str, text: str) -> None:
        """A program of the root's."""
        path = self.run.parent / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    async def rounds(self, number: int = 1, before: str = "") -> subprocess.CompletedProcess[str]:
        """So many turns of the service's loop; its pauses take no time and are printed."""
        script = f'. {AGENT}; {before} n=0; sleep() {{ echo "$1"; n=$((n + 1)); [ $n -lt {number} ] || exit 0; }}; main'
        return await self.do(script)

    async def do(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, [*self.shell, "-c", script], env={**self.env, **env}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    def kept_from_others(self) -> bool:
        return stat.S_IMODE(self.run.stat().st_mode) == 0o700


def steps_of(site: Running) -> list[tuple[str, str, str]]:
    """What the node reported of its scripts: step, status, detail."""
    return [(e.step, e.status, e.detail) for e in site.registry.events(MAC) if e.kind == "step"]
