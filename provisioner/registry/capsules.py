"""The capsules that are installed: their rows are the truth, the store's files follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.registry.generations import COLUMNS, Generations, put_capsule
from provisioner.registry.model import InstalledCapsule, Past


class Capsules(Generations):
    """The part of the registry that knows the installed capsules."""

    def add_capsule(self, capsule: InstalledCapsule) -> None:
        """Record a capsule; the row of the same name, if any, is replaced, and its history begins anew.

        Of the same identity only the row is replaced. Whoever changes a capsule appends to its history instead: see
        switch_capsule.
        """
        with self.db.write() as con:
            last = "SELECT identity FROM generations WHERE capsule = ? ORDER BY number DESC LIMIT 1"
            known = con.execute(last, (capsule.name,)).fetchone()
            put_capsule(con, capsule)
            if known is None or known["identity"] != capsule.identity:
                con.execute("DELETE FROM generations WHERE capsule = ?", (capsule.name,))
                self.append_past(con, capsule.name, Past(capsule.identity, "import", time=capsule.imported))

    def capsule(self, name: str) -> InstalledCapsule | None:
        """The capsule installed under exactly this name."""
        rows = self.db.rows(f"SELECT {COLUMNS} FROM capsules WHERE name = ?", (name,))  # noqa: S608
        return next((_capsule(row) for row in rows), None)

    def capsules(self) -> list[InstalledCapsule]:
        """Every installed capsule, by name."""
        rows = self.db.rows(f"SELECT {COLUMNS} FROM capsules ORDER BY name")  # noqa: S608
        return [_capsule(row) for row in rows]

    def find_capsule(self, name: str) -> InstalledCapsule:
        """The capsule of this installed name, or of NAME-VERSION.ARCH when NAME alone is unambiguous.

        Raises CapsulekitError for an unknown or ambiguous name.
        """
        return find_capsule(self.capsules(), name)

    def nodes_of_capsule(self, name: str) -> list[str]:
        """Names of the nodes that boot the capsule of exactly this installed name."""
        rows = self.db.rows("SELECT hostname FROM nodes WHERE vnfs = ? ORDER BY hostname", (name,))
        return [str(row["hostname"]) for row in rows]

    def delete_capsules(self, names: Sequence[str], *, used: bool = False) -> None:
        """Take away rows, all or none; CapsulekitError when nodes boot one (unless ``used``) or there is none."""
        with self.db.write() as con:
            for name in names:
                count = con.execute("SELECT count(*) FROM nodes WHERE vnfs = ?", (name,)).fetchone()[0]
                if count and not used:
                    raise CapsulekitError(f"capsule {name} is booted by {count} of the nodes")
                if con.execute("DELETE FROM capsules WHERE name = ?", (name,)).rowcount == 0:
                    raise CapsulekitError(f"no capsule {name!r} is installed", hint="see: capsulekit vnfs list")
                con.execute("DELETE FROM generations WHERE capsule = ?", (name,))


def _capsule(row: Any) -> InstalledCapsule:
    return InstalledCapsule(**{**row, "private": bool(row["private"])})


def find_capsule(installed: Sequence[InstalledCapsule], name: str) -> InstalledCapsule:
    """Of the installed capsules the one that a name means; see Capsules.find_capsule."""
    exact = [c for c in installed if c.name == name]
    found = exact or [c for c in installed if c.name == f"{name}-{c.version}.{c.arch}"]
    if not found:
        raise CapsulekitError(f"no capsule {name!r} is installed", hint="see: capsulekit vnfs list")
    if len(found) > 1:
        raise CapsulekitError(f"capsule {name!r} could be " + " or ".join(c.name for c in found))
    return found[0]
