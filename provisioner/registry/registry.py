"""The registry: everything a site knows about its nodes, their devices, capsules, modules, tickets and sessions."""

from __future__ import annotations

from pathlib import Path

from capsulekit.sitepaths import SitePaths
from provisioner.registry.db import Database
from provisioner.registry.devices import Devices
from provisioner.registry.nodes import DuplicateNode, Nodes
from provisioner.registry.reports import Reports
from provisioner.registry.roles import Roles
from provisioner.registry.tickets import Tickets
from provisioner.siteconf import NotInitialised, read_site, registry_path

__all__ = ["DuplicateNode", "Registry", "open_registry"]


class Registry(Nodes, Devices, Reports, Roles, Tickets):
    """One registry file. Safe to share between threads; every write is one immediate transaction."""

    def __init__(self, path: Path) -> None:
        """Open the registry at ``path``, made when missing. Raises CapsulekitError."""
        self.db = Database(path)

    def close(self) -> None:
        """Close the connections of all threads."""
        self.db.close()


def open_registry(paths: SitePaths) -> Registry:
    """The site's registry; raises NotInitialised when the site has none."""
    path = registry_path(paths, read_site(paths))
    if not path.exists():
        raise NotInitialised(paths)
    return Registry(path)
