"""rsync: sends named files to one node, whatever their sizes and times say; each is written beside and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from capsulekit.errors import CapsulekitError
from capsulekit.run import CommandFailed, run_bounded
from provisioner.livesync.ssh import ENV, Ssh, host_of
from provisioner.registry.model import Node

PURPOSE = "send files to a node"
IDLE_SECONDS = 60
MOST_SAID = 1 << 20  # bytes


def send(ssh: Ssh, node: Node, root: Path, names: Path, out: IO[bytes], timeout: float) -> None:
    """Send what ``names`` lists (relative to ``root``, each ended by a zero byte) to a node's root.

    Folders that are named get their owner, mode and time, not what is in them. Raises CapsulekitError.
    """
    argv: list[str | Path] = [
        "rsync", "-aAXH", "--numeric-ids", "--ignore-times", "--no-implied-dirs", "--from0", f"--files-from={names}",
        f"--timeout={IDLE_SECONDS}", "-e", ssh.shell_words(node), "--", f"{root}/", f"root@{host_of(node)}:/",
    ]  # fmt: skip
    try:
        run_bounded(argv, out, purpose=PURPOSE, most=MOST_SAID, timeout=timeout, env=ENV, stop=ssh.stop)
    except CommandFailed as wrong:
        lines = [line for line in wrong.output.splitlines() if line.startswith("rsync") and "error in" not in line]
        if "command not found" in wrong.output or "not found" in "".join(lines[:1]):
            raise CapsulekitError("rsync is not installed on it: add it to the capsule") from wrong
        said = (lines or wrong.output.strip().splitlines() or [f"rsync ended with status {wrong.status}"])[0]
        raise CapsulekitError(said.strip()) from wrong
