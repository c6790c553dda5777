"""Moving the registry to another place: from SQLite to PostgreSQL, or back; what was there stays as it was."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.flattoml import update_flat
from provisioner.netboot.interfaces import ipv4_addresses, ipv6_addresses
from provisioner.registry.backup import Contents, contents, restore_backup, write_backup
from provisioner.registry.db import check_place
from provisioner.registry.registry import Registry, open_registry
from provisioner.siteconf import SiteConfig, load_site, registry_place, site_file

KNOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Move:
    """What is moved from where to where; ``there`` is what the new place holds already."""

    old: Path | str
    new: Path | str
    here: Contents
    there: Contents

    @property
    def occupied(self) -> bool:
        """Whether the new place holds something that the move would replace."""
        return any(self.there.rows.get(table) for table in ("nodes", "capsules", "roles", "changes"))


def look(paths: SitePaths, target: str) -> Move | None:
    """What a move to ``target`` (a path, or postgresql://…) would do; None when the registry is there already.

    A file that is not there is not made; an empty PostgreSQL is given its tables. Raises CapsulekitError when the place
    can't be used, or `serve` runs, which would go on writing to the old one.
    """
    site = load_site(paths)
    old, new = registry_place(paths, site), _place(target)
    if old == new:
        return None
    check_place(new)
    _refuse_running(site)
    with closing(open_registry(paths)) as source:
        return Move(old, new, contents(source.db), _held(new))


def _held(place: Path | str) -> Contents:
    """What a place holds already. Raises CapsulekitError when it can't be used."""
    if isinstance(place, Path) and not place.exists():
        if not os.access(place.parent, os.W_OK):
            raise CapsulekitError(f"there is no folder {place.parent} to write the registry to", hint="make it first")
        return Contents(0, 0.0, {})
    with closing(Registry(place)) as registry:
        return contents(registry.db)


def move(paths: SitePaths, planned: Move) -> Path:
    """Copy everything, then have site.toml name the new place; returns the backup that was made on the way.

    Nobody can write to the old registry meanwhile. Killed before the last step it changes nothing that counts, and can
    be run again. Raises CapsulekitError.
    """
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    backup = paths.state / f"registry.{stamp}.backup"
    # The writer's place is held by a connection of its own, as one that writes can't read as of one moment.
    with closing(open_registry(paths)) as source, closing(open_registry(paths)) as guard, guard.db.write():
        written = write_backup(source.db, backup)
        with closing(Registry(planned.new)) as target:
            restored = restore_backup(target, backup)
        if restored.rows != written.rows:
            raise CapsulekitError(f"{planned.new} did not take everything", hint=f"a backup is in {backup}")
        update_flat(site_file(paths), {"registry": str(planned.new)})
    return backup


def _place(target: str) -> Path | str:
    if "://" in target:
        return target
    if not target.startswith("/"):
        raise CapsulekitError(f"{target!r} is neither an absolute path nor a postgresql:// address")
    return Path(target)


def _refuse_running(site: SiteConfig) -> None:
    # Only this machine is asked: some networks answer for addresses that are nobody's.
    if site.ip not in {address for _, address in ipv4_addresses() + ipv6_addresses()}:
        return
    try:
        socket.create_connection((site.ip, site.tls_port), KNOCK_SECONDS).close()
    except OSError:
        return
    raise CapsulekitError(
        f"capsulekit serve runs on {site.host}:{site.tls_port} and would go on writing to the old registry",
        hint="stop it, run this again, start it",
    )
