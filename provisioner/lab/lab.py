"""A lab: a master and PXE-booting nodes on a private network of one machine, gone without a trace afterwards.

with Lab(Path("/tmp/lab")) as lab:
    lab.serve(paths)
    node = lab.node("52:54:00:00:00:01", memory=1024)
    node.start()
    node.console.expect("login:", timeout=120)
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.run import failed, tool
from capsulekit.sitepaths import SitePaths
from provisioner.lab import net
from provisioner.lab.qemu import Arch, Card, Firmware, Machine, Medium, Node

ADDRESS = "10.77.0.1/24"
RECORD = "lab.json"


class Lab:
    """A context manager that needs root; ``workdir`` keeps logs, sockets and the record of what has to go.

    The namespace's name is written down before it is made: a lab that was killed is cleared away by the next
    one in the same folder.
    """

    def __init__(self, workdir: Path, address: str = ADDRESS) -> None:
        self.workdir = workdir.resolve()
        self.network = net.Network(net.new_name(), "br0", address)
        self.nodes: list[Node] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._taps = 0
        self._old_term: Any = None

    @property
    def ip(self) -> str:
        """The bridge's address without the prefix length."""
        return self.network.address.partition("/")[0]

    def __enter__(self) -> Self:
        self.workdir.mkdir(parents=True, exist_ok=True)
        clear_leftovers(self.workdir)
        atomic_write(self.workdir / RECORD, json.dumps({"namespace": self.network.namespace}).encode())
        if threading.current_thread() is threading.main_thread():
            self._old_term = signal.signal(signal.SIGTERM, _on_term)
        try:
            net.create(self.network)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop nodes and programs and remove the network; safe to call twice."""
        for node in self.nodes:
            node.stop()
        for child in reversed(self._children):
            _end(child)
        net.remove(self.network.namespace)
        (self.workdir / RECORD).unlink(missing_ok=True)
        if self._old_term is not None:
            signal.signal(signal.SIGTERM, self._old_term)
            self._old_term = None

    def node(
        self,
        mac: str,
        *,
        memory: int = 1024,
        firmware: Firmware = "bios",
        cpus: int = 1,
        kernel: tuple[Path, Path, str] | None = None,
        nic: str = "virtio-net-pci",
        rom: bool = True,
        extra: Sequence[str] = (),
        arch: Arch = "amd64",
        cpu: str = "",
        before: Sequence[tuple[str, str]] = (),
        medium: Medium | None = None,
    ) -> Node:
        """A machine on the lab's bridge, switched off: ``memory`` in MB; ``kernel`` (kernel, initrd, command line)
        starts it without PXE; ``before`` are more cards (MAC, model), on the bus before the one that boots."""
        cards = [Card(other, self._tap(), model, rom=False) for other, model in before]
        card = Card(mac, self._tap(), nic, rom)
        machine = Machine(card, memory, firmware, cpus, kernel, tuple(extra), arch, cpu, tuple(cards), medium)
        # Short folder name: a Unix socket's path ends at 107 bytes.
        node = Node(machine, self.workdir / mac.replace(":", "").lower(), self.spawn)
        self.nodes.append(node)
        return node

    def _tap(self) -> str:
        """One more tap on the bridge."""
        name = f"tap{self._taps}"
        self._taps += 1
        net.add_tap(self.network, name)
        return name

    def spawn(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program inside the lab's network, its output in ``log``; it ends with the lab."""
        inside = self.network.inside([tool(argv[0], "be part of a lab"), *argv[1:]])
        with log.open("ab") as out:
            child = subprocess.Popen(
                [tool(inside[0], "run programs in a network namespace"), *inside[1:]],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._children.append(child)
        return child

    def run(self, argv: Sequence[str], timeout: float = 60) -> str:
        """Run a program to its end inside the lab's network and return its stdout; raises CommandFailed."""
        inside = self.network.inside([tool(argv[0], "be part of a lab"), *argv[1:]])
        done = subprocess.run(
            [tool(inside[0], "run programs in a network namespace"), *inside[1:]],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise failed(argv, "run a program in the lab", done.returncode, done.stderr or done.stdout)
        return done.stdout.decode("utf-8", "replace")

    def serve(self, paths: SitePaths, timeout: float = 30) -> subprocess.Popen[bytes]:
        """Start the site's `capsulekit serve` and wait until it answers; raises CapsulekitError with its log."""
        ready, log = self.workdir / "serve.ready", self.workdir / "serve.log"
        ready.unlink(missing_ok=True)
        argv = [
            sys.executable,
            "-c",
            "from capsulekit.cli.main import entry; entry()",
            "--config-dir",
            str(paths.config),
        ]
        argv += ["--state-dir", str(paths.state), "serve", "--ready-file", str(ready)]
        server = self.spawn(argv, log)
        deadline = time.monotonic() + timeout
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise CapsulekitError(f"capsulekit serve did not come up:\n{tail}", hint=f"all of it: {log}")
            time.sleep(0.05)
        return server


def clear_leftovers(workdir: Path) -> None:
    """Remove what a killed lab recorded in ``workdir`` (a folder serves one lab at a time)."""
    record = workdir / RECORD
    if not record.exists():
        return
    try:
        namespace = str(json.loads(record.read_bytes())["namespace"])
    except (ValueError, KeyError, TypeError):
        namespace = ""
    # A record that names anything but a lab's namespace is not followed.
    if namespace.startswith(net.PREFIX) and "/" not in namespace:
        net.remove(namespace)
    record.unlink(missing_ok=True)


def _on_term(number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that __exit__ runs."""
    raise SystemExit(128 + number)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(timeout=net.GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
