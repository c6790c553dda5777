"""``capsulekit close``."""

from __future__ import annotations

from provisioner.cli._close import cli

__all__ = ["cli"]
