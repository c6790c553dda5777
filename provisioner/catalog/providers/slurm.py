"""Slurm's configuration, from the master's folder, and a file that declares the nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from capsulekit.errors import CapsulekitError
from provisioner.catalog.model import Given
from provisioner.catalog.providers import Asked

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NODES = "capsulekit-nodes.conf"


def files_for(asked: Asked) -> Iterator[Given]:
    """The files of the setting ``files``, capsulekit-nodes.conf, and MUNGE's key when one is named."""
    folder, target = asked.word("folder"), asked.word("target")
    for name in asked.word("files").split():
        if not _FILE.fullmatch(name) or name == NODES:
            raise CapsulekitError(f"settings: files names {name!r}, which is not the name of a file in {folder}")
        # Slurm's database password lives in this one, and nodes have no use for it.
        if name == "slurmdbd.conf":
            raise CapsulekitError("settings: slurmdbd.conf is not for nodes")
        yield Given(name, asked.master_file(f"{folder}/{name}"), f"{target}/{name}")
    nodes = [node for node in asked.nodes() if node.enabled and node.accepted]
    told = f" {asked.word('node')}" if asked.word("node") else ""
    lines = "".join(f"NodeName={node.hostname}{told}\n" for node in nodes)
    yield Given(NODES, lines.encode(), f"{target}/{NODES}", 'slurm.conf says "Include capsulekit-nodes.conf"')
    if key := asked.word("munge_key"):
        yield Given("munge.key", asked.master_file(key), "/etc/munge/munge.key", secret=True)
    yield Given("target", f"{target}\n".encode())
