"""The manual's transcripts are typed as they stand there: a shell in which ``perceus`` is the installed program."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from capsulekit.cli.main import PERCEUS, main
from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.registry.defaults import Defaults
from provisioner.registry.model import InstalledCapsule
from provisioner.registry.registry import Registry, open_registry

BIN = Path(sys.executable).parent


@dataclass
class Shell:
    """A site, and a root shell on its master."""

    paths: SitePaths

    @property
    def registry(self) -> Registry:
        return open_registry(self.paths)

    def __call__(self, line: str, *, status: int = 0, stdin: str = "") -> str:
        """What a line prints on stdout; the line's exit status is checked."""
        done = self.run(line, stdin)
        assert done.returncode == status, done
        return done.stdout

    def run(self, line: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line in bash; one that only calls ``perceus``, with no more than words, without starting a program."""
        folders = {"CAPSULEKIT_CONFIG_DIR": str(self.paths.config), "CAPSULEKIT_STATE_DIR": str(self.paths.state)}
        if line.startswith("perceus ") and not set(line) & set("|;&<>$`\\\n"):
            return self._call(shlex.split(line), stdin, folders)
        env = {**os.environ, **folders, "PATH": f"{BIN}:{os.environ['PATH']}"}
        argv = ["bash", "-c", f"set -f; {line}"]
        return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=120)

    def _call(self, argv: list[str], stdin: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """What the program does, in this process: the start of Python is the slow half of a short command."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr("sys.stdin", io.StringIO(stdin))
            for name, value in env.items():
                patch.setenv(name, value)
            status = main(argv[1:], only=PERCEUS)
        return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())

    def add(self, *names: str, first: int = 0) -> None:
        """Nodes of these names, with MACs counting up from ``first``."""
        machines = [(f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}", name or None) for n, name in enumerate(names, first)]
        self.registry.add_nodes(machines, defaults=Defaults())

    def set(self, key: str, value: str, *names: str) -> None:
        """Set an attribute of nodes."""
        self.registry.set_nodes(key, value, [node.nodeid for node in self.registry.select(names).nodes])

    def capsules(self, *names: str) -> None:
        """Rows of capsules: what only needs their names needs no files."""
        for name in names:
            self.registry.add_capsule(InstalledCapsule(name, "ab" * 32, "00", "RWQ", "1", "x86_64", 1.0))


def shell_of(folder: Path) -> Shell:
    """A new site in ``folder``, as the manual has it: master 10.0.0.1 in 10.0.0.0/16."""
    paths = SitePaths(folder / "etc", folder / "var")
    init_site(paths, InitRequest("eth1", "10.0.0.1/16", "10.0.254.1-10.0.254.250"))
    return Shell(paths)
