"""A new root and the shipped modules' scripts run against it, as stage 1 or the agent would: for their tests."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_shell import SHELLS

from provisioner.catalog import SHIPPED

MAC = "52:54:00:12:34:56"


class Root:
    """A new root with a node's files, and a module's script run against it."""

    def __init__(self, shell: str, folder: Path) -> None:
        self.shell, self.folder = SHELLS[shell], folder
        self.path, self.data, self.bin = folder / "root", folder / "data", folder / "bin"
        for place in (self.path / "etc", self.path / "proc/sys", self.data, self.bin):
            place.mkdir(parents=True)
        # Stage 1 has busybox's programs and no others.
        if shell == "busybox":
            subprocess.run(["busybox", "--install", "-s", str(self.bin)], check=True)
        self.calls = folder / "calls"

    def debian(self, systemd: bool = True) -> Root:
        self.write("etc/os-release", "ID=debian\n")
        if systemd:
            (self.path / "usr/lib/systemd/system").mkdir(parents=True)
        return self

    def rhel(self, systemd: bool = True) -> Root:
        self.write("etc/redhat-release", "x\n")
        self.write("etc/sysconfig/network", "NETWORKING=yes\nHOSTNAME=old\n")
        if systemd:
            (self.path / "usr/lib/systemd/system").mkdir(parents=True)
        return self

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def give(self, **files: str | bytes) -> None:
        for name, text in files.items():
            (self.data / name.replace("__", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())

    def stub(self, name: str, text: str = "") -> None:
        """A program that only notes how it was called. As a function too: busybox's shell prefers its own."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.calls}"\n{text}\n')
        path.chmod(0o755)

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def run(self, script: str, nodename: str = "n0001.rack", **env: str) -> subprocess.CompletedProcess[str]:
        path = str(self.bin) if self.shell[0] == "busybox" else f"{self.bin}:{os.environ['PATH']}"
        base = {
            "PATH": path, "NEWROOT": str(self.path), "NODENAME": nodename, "MODULE_DATA": str(self.data),
            "NODEID": MAC, "STATE": script.split("/")[1],
        }  # fmt: skip
        # A program in a function's place: busybox's shell would run its own applet instead of the one in PATH.
        stubs = "".join(f'{p.name}() {{ {p} "$@"; }}\n' for p in sorted(self.bin.iterdir()) if not p.is_symlink())
        argv = [*self.shell, "-c", f"{stubs}. {SHIPPED / script}"]
        return subprocess.run(argv, env={**base, **env}, capture_output=True, text=True, timeout=60)

    def ok(self, script: str, **env: str) -> str:
        """Run it twice: the second time changes nothing more."""
        first = self.run(script, **env)
        assert first.returncode == 0, first.stdout + first.stderr
        before = dict(self.files())
        again = self.run(script, **env)
        assert again.returncode == 0, again.stdout + again.stderr
        assert dict(self.files()) == before
        return first.stdout

    def fails(self, script: str, **env: str) -> str:
        before = dict(self.files())
        done = self.run(script, **env)
        assert done.returncode != 0
        after = {name: what for name, what in self.files() if not name.endswith(".new")}
        assert after == before
        return (done.stdout + done.stderr).strip()

    def files(self) -> Iterator[tuple[str, tuple[int, bytes]]]:
        for path in sorted(self.path.rglob("*")):
            info = path.lstat()
            if path.is_symlink():
                yield str(path), (0, os.fsencode(path.readlink()))
            elif path.is_file():
                yield str(path), (stat.S_IMODE(info.st_mode), path.read_bytes())

    def text(self, name: str) -> str:
        return (self.path / name).read_text()

    def mode(self, name: str) -> int:
        return stat.S_IMODE((self.path / name).stat().st_mode)


@pytest.fixture(params=sorted(SHELLS))
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if shutil.which(SHELLS[request.param][0]) is None:
        pytest.skip(f"{request.param} is not installed")
    return Root(request.param, tmp_path)
