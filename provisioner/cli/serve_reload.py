"""``capsulekit serve reload``: have the running server take on its changed settings."""

from provisioner.cli._reload import reload as cli

__all__ = ["cli"]
