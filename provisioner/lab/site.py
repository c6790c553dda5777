"""A site for a lab: its folders, its commands through the real command line, and waiting for what nodes report."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from capsulekit.cli.main import main
from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.lab.lab import Lab
from provisioner.registry.model import Event, Node
from provisioner.registry.registry import Registry, open_registry

POOL = (100, 200)  # last parts of the addresses that nodes get


class LabSite:
    """A site below ``folder``; ``echo`` is given every command before it runs."""

    def __init__(self, folder: Path, echo: Callable[[str], None] = lambda _line: None) -> None:
        folder = folder.absolute()
        self.paths = SitePaths(folder / "etc", folder / "var")
        self._echo = echo

    def command(self, *words: str) -> str:
        """Run one capsulekit command on this site and return what it printed; raises CapsulekitError when it fails."""
        self._echo("capsulekit " + " ".join(words))
        out, err = io.StringIO(), io.StringIO()
        place = ["--config-dir", str(self.paths.config), "--state-dir", str(self.paths.state)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([*place, *words])
        if status != 0:
            raise CapsulekitError(f"capsulekit {words[0]} ended with {status}: {err.getvalue().strip()}")
        return out.getvalue()

    def init(self, lab: Lab, stage1: Path, *more: str, kargs: str = "console=tty0 console=ttyS0,115200") -> None:
        """Set the site up on the lab's bridge with ``stage1``; the nodes talk on their screen and serial console."""
        dot = ":" if ":" in lab.ip else "."
        net = lab.ip.rpartition(dot)[0] + dot
        words = ["--interface", lab.network.bridge, "--address", lab.network.address]
        words += ["--range", f"{net}{POOL[0]}-{net}{POOL[1]}", "--stage1", str(stage1), "--stage1-kargs", kargs]
        self.command("init", *words, *more)

    @property
    def registry(self) -> Registry:
        """The site's registry, for reading what nodes reported."""
        return open_registry(self.paths)

    def wait(self, mac: str, wanted: Callable[[Node, list[Event]], bool], timeout: float, what: str) -> Node:
        """Look at a node until ``wanted(node, events)`` holds; raises CapsulekitError after ``timeout`` seconds."""
        registry = self.registry
        try:
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                node = registry.node(mac)
                if node is not None and wanted(node, registry.events(mac)):
                    return node
                time.sleep(0.3)
            last = [f"{e.state or e.step} {e.status} {e.detail}".strip() for e in registry.events(mac)[-5:]]
            raise CapsulekitError(f"{mac} did not reach {what} within {timeout:.0f} s; it last said: {last}")
        finally:
            registry.close()

    def wait_ready(self, mac: str, timeout: float, since: float = 0.0) -> Node:
        """Wait until the node has said ``ready`` later than ``since`` (epoch seconds)."""

        def is_ready(node: Node, events: Sequence[Event]) -> bool:
            return node.status == "ready" and any(e.state == "ready" and e.time > since for e in events)

        return self.wait(mac, is_ready, timeout, "ready")
