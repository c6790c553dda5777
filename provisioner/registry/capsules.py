"""The capsules that are installed: their rows are the truth, the store's files follow them."""

from __future__ import annotations

from dataclasses import asdict, fields

from capsulekit.errors import CapsulekitError
from provisioner.registry.db import Database
from provisioner.registry.model import InstalledCapsule

COLUMNS = ", ".join(f.name for f in fields(InstalledCapsule))


class Capsules:
    """The part of the registry that knows the installed capsules."""

    db: Database

    def add_capsule(self, capsule: InstalledCapsule) -> None:
        """Record a capsule; the row of the same name, if any, is replaced."""
        marks = ", ".join("?" * len(fields(capsule)))
        with self.db.write() as con:
            sql = f"INSERT OR REPLACE INTO capsules ({COLUMNS}) VALUES ({marks})"  # noqa: S608 - our own column names
            con.execute(sql, tuple(asdict(capsule).values()))

    def capsule(self, name: str) -> InstalledCapsule | None:
        """The capsule installed under exactly this name."""
        return next((c for c in self.capsules() if c.name == name), None)

    def capsules(self) -> list[InstalledCapsule]:
        """Every installed capsule, by name."""
        rows = self.db.rows(f"SELECT {COLUMNS} FROM capsules ORDER BY name")  # noqa: S608
        return [InstalledCapsule(**{**row, "private": bool(row["private"])}) for row in rows]

    def find_capsule(self, name: str) -> InstalledCapsule:
        """The capsule of this installed name, or of NAME-VERSION.ARCH when NAME alone is unambiguous.

        Raises CapsulekitError for an unknown or ambiguous name.
        """
        installed = self.capsules()
        exact = [c for c in installed if c.name == name]
        found = exact or [c for c in installed if c.name == f"{name}-{c.version}.{c.arch}"]
        if not found:
            raise CapsulekitError(f"no capsule {name!r} is installed", hint="see: capsulekit vnfs list")
        if len(found) > 1:
            raise CapsulekitError(f"capsule {name!r} could be " + " or ".join(c.name for c in found))
        return found[0]
