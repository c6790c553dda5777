"""``capsulekit vnfs umount``, where the manual has it."""

from __future__ import annotations

from provisioner.cli._umount import cli

__all__ = ["cli"]
