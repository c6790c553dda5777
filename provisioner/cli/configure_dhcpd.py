"""``capsulekit configure dhcpd``: the manual's other word for ``configure dhcp``."""

from provisioner.cli._dhcp import configure_dhcp as cli

__all__ = ["cli"]
