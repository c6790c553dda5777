"""Which capsule a node would boot now: it reboots when idle once that is another than it runs."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.catalog.model import Given
from provisioner.catalog.providers import Asked


def files_for(asked: Asked) -> Iterator[Given]:
    """The identity of the capsule, and the settings."""
    if asked.capsule:
        note = "" if asked.state != "init" else "remembered until the next boot"
        target = "/etc/capsulekit/agent/capsule" if asked.state == "init" else ""
        yield Given("identity", f"{asked.capsule.identity}\n".encode(), target, note)
    rules = f"first_id={asked.number('first_id')}\nlast_id={asked.number('last_id')}\ntell={asked.word('tell')}\n"
    if asked.state != "init":
        yield Given("settings", rules.encode())
