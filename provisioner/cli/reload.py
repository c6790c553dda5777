"""``capsulekit reload``: ``serve reload`` as the manual has it (``/etc/init.d/perceus reload``)."""

from provisioner.cli._reload import reload as cli

__all__ = ["cli"]
