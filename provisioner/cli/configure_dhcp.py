"""``capsulekit configure dhcp``: on which interface which machines get which addresses."""

from provisioner.cli._dhcp import configure_dhcp as cli

__all__ = ["cli"]
