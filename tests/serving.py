"""``capsulekit serve`` as a process in a network namespace, its commands, and what clients see of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netns import Wire

from capsulekit.sitepaths import SitePaths


def capsulekit(paths: SitePaths) -> list[str]:
    """The words before a subcommand."""
    program = [sys.executable, "-c", "from capsulekit.cli.main import entry; entry()"]
    return [*program, "--config-dir", str(paths.config), "--state-dir", str(paths.state)]


def command(net: Wire, paths: SitePaths, *words: str) -> subprocess.CompletedProcess[str]:
    """One command in the master's namespace."""
    return net.on(net.master, *capsulekit(paths), *words, check=False)


def resolve(net: Wire, name: str, server: str, where: str = "") -> set[str]:
    """The addresses that a name server gives for a name, asked on the master: a node may have no address yet."""
    done = net.on(where or net.master, "busybox", "nslookup", "-type=a", name, server, check=False)
    answer = done.stdout.partition("\n\n")[2]
    return {line.split()[-1] for line in answer.splitlines() if line.startswith("Address")}


def set_site(paths: SitePaths, **settings: str | int | bool) -> None:
    """Change keys of site.toml as an admin with an editor would."""
    from provisioner.flattoml import update_flat

    update_flat(paths.config / "site.toml", settings)


@dataclass
class Server:
    """A running ``capsulekit serve``; its log goes to ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    def dnsmasq(self, conf: str = "dnsmasq.conf") -> list[int]:
        """Its children that are the dnsmasq for addresses and boot files."""
        pid, found = self.process.pid, []
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended since
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"dnsmasq") and any(w.endswith(f"/{conf}".encode()) for w in words):
                    found.append(int(child))
        return found

    def resolver(self) -> list[int]:
        """Its children that are the dnsmasq for names."""
        return self.dnsmasq("dns.conf")


def until(what: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds; it must in time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def serving(net: Wire, paths: SitePaths, folder: Path, *, ready: bool = True, **env: str) -> Iterator[Server]:
    """The server in the master's namespace, ready unless said otherwise, until the block ends."""
    ready_file, log = folder / "ready", folder / "serve.log"
    command = [*capsulekit(paths), "serve", "--ready-file", str(ready_file)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["ip", "netns", "exec", net.master, *command], stderr=out, stdout=out, env={**os.environ, **env}
        )
        server = Server(process, log)
        try:
            if ready:
                until(lambda: ready_file.exists() or process.poll() is not None)
                assert process.poll() is None, log.read_text()
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                finally:
                    process.kill()
                    process.wait()
