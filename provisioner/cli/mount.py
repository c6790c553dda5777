"""``capsulekit mount``."""

from __future__ import annotations

from provisioner.cli._mount import cli

__all__ = ["cli"]
