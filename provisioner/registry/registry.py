"""The registry: everything a site knows about its nodes, their devices, capsules, modules, tickets and sessions."""

from __future__ import annotations

from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.registry.booted import BootedPlans
from provisioner.registry.db import Database, open_database
from provisioner.registry.devices import Devices
from provisioner.registry.groups import Groups
from provisioner.registry.leases import Leases
from provisioner.registry.nodes import DuplicateNode, Nodes
from provisioner.registry.reports import Reports
from provisioner.registry.roles import Roles
from provisioner.registry.tickets import Tickets
from provisioner.registry.trees import Trees
from provisioner.siteconf import NotInitialised, check_attributes, read_site, registry_place, site_file

__all__ = ["DuplicateNode", "Registry", "open_registry"]


class Registry(Nodes, Groups, Devices, Reports, BootedPlans, Leases, Roles, Tickets, Trees):
    """One registry. Safe to share between threads and processes; every write is one transaction of the only writer."""

    def __init__(self, place: Path | str) -> None:
        """Open the registry at a path (made when missing) or a postgresql:// address. Raises CapsulekitError."""
        self.db: Database = open_database(place)

    def close(self) -> None:
        """Close the connections of all threads."""
        self.db.close()


class EmptyRegistry(CapsulekitError):
    """The registry's file has lost all it held."""


def open_registry(paths: SitePaths, *, make: bool = False) -> Registry:
    """The site's registry; raises NotInitialised or EmptyRegistry when it has none, unless one is to be made."""
    config = read_site(paths)
    check_attributes(config, str(site_file(paths)))
    place = registry_place(paths, config)
    if not make and isinstance(place, Path) and not place.exists():
        raise NotInitialised(paths)
    if not make and isinstance(place, Path) and not place.stat().st_size:
        # SQLite takes an empty file for a new registry, and the site's nodes would be gone without a word.
        raise EmptyRegistry(
            f"the registry {place} is empty",
            hint="bring a backup back: capsulekit registry restore FILE; after a killed first run: capsulekit init",
        )
    registry = Registry(place)
    registry.attribute_names = config.attribute_names
    registry.history_days = config.history_days
    return registry


def describe_registry(paths: SitePaths) -> str:
    """Where the site's registry is, and what it holds, in a line."""
    from provisioner.registry.backup import contents

    try:
        registry = open_registry(paths)
    except (NotInitialised, EmptyRegistry):
        return f"no registry yet, in {registry_place(paths, read_site(paths))}"
    held = contents(registry.db)
    registry.close()
    return f"{registry.db.place}: {held}"
