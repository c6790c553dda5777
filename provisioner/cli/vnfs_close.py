"""``capsulekit vnfs close``, where the manual has it."""

from __future__ import annotations

from provisioner.cli._close import cli

__all__ = ["cli"]
