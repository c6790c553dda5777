"""``capsulekit umount``."""

from __future__ import annotations

from provisioner.cli._umount import cli

__all__ = ["cli"]
