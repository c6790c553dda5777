"""What DHCP gave to whom, as the network manager saw it. Times are epoch seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass

from provisioner.registry.db import Database


@dataclass(frozen=True)
class Lease:
    """One address; ``nodeid`` is the MAC that has it, of a node or of a machine not registered."""

    nodeid: str
    address: str
    hostname: str
    expires: float
    seen: float  # when we last heard of it


class Leases:
    """The part of the registry that knows the leases."""

    db: Database

    def record_lease(self, mac: str, address: str, hostname: str, expires: float, *, now: float | None = None) -> None:
        """A lease was given or renewed; whoever had the address before has it no more."""
        values = (address, mac, hostname, expires, time.time() if now is None else now)
        with self.db.write() as con:
            con.execute(
                "INSERT INTO leases (address, nodeid, hostname, expires, seen) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (address) DO UPDATE SET nodeid = excluded.nodeid, hostname = excluded.hostname,"
                " expires = excluded.expires, seen = excluded.seen",
                values,
            )

    def drop_lease(self, mac: str, address: str) -> bool:
        """A lease ended; False when this machine had none of this address (any more)."""
        with self.db.write() as con:
            sql = "DELETE FROM leases WHERE address = ? AND nodeid = ?"
            return con.execute(sql, (address, mac)).rowcount > 0

    def lease_of(self, address: str) -> Lease | None:
        """Who has an address by DHCP, or had it last."""
        sql = "SELECT nodeid, address, hostname, expires, seen FROM leases WHERE address = ?"
        rows = self.db.rows(sql, (address,))
        return Lease(*rows[0]) if rows else None

    def leases(self) -> list[Lease]:
        """Every lease, those that ran out too, by address as a text."""
        rows = self.db.rows("SELECT nodeid, address, hostname, expires, seen FROM leases ORDER BY address")
        return [Lease(*row) for row in rows]
