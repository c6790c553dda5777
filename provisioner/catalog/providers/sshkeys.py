"""The node's own SSH host keys, and the cluster's public key for root."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner import hostkeys
from provisioner.catalog.model import Given
from provisioner.catalog.providers import Asked


def files_for(asked: Asked) -> Iterator[Given]:
    """Host keys are made at the first call and kept."""
    for name, content in hostkeys.files_for(asked.paths, asked.node.nodeid).items():
        if name == "authorized_keys":
            yield Given(name, content, "/root/.ssh/authorized_keys", "added to what the capsule has")
        else:
            yield Given(name, content, f"/etc/ssh/{name}", secret=not name.endswith(".pub"))
