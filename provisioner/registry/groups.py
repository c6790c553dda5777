"""What is set for a group itself. A group exists while nodes are in it; its settings wait for them."""

from __future__ import annotations

from provisioner.registry.history import History
from provisioner.registry.names import parse_group, parse_line
from provisioner.registry.sql import Connection


class Groups(History):
    """The part of the registry that knows the groups' own settings."""

    def group_kargs(self, name: str) -> str:
        """The kernel arguments of a group's nodes; "" when none are set."""
        return self._group(name, "kargs")

    def set_group_kargs(self, name: str, value: str) -> None:
        """Set the kernel arguments of a group's nodes. Raises CapsulekitError for a wrong name or value."""
        self._set_group(name, "kargs", parse_line(value))

    def group_desc(self, name: str) -> str:
        """A group's description; "" when there is none."""
        return self._group(name, "desc")

    def set_group_desc(self, name: str, value: str) -> None:
        """Describe a group. Raises CapsulekitError for a wrong name or value."""
        self._set_group(name, "desc", parse_line(value))

    def group_settings(self) -> dict[str, tuple[str, str]]:
        """Group → its kernel arguments and description, of those that have any, sorted."""
        rows = self.db.rows('SELECT name, kargs, "desc" FROM "groups" ORDER BY name')
        return {row["name"]: (row["kargs"], row["desc"]) for row in rows}

    def forget_group(self, name: str) -> None:
        """Remove what is set for a group; its nodes stay in it."""
        with self.db.write() as con:
            for key in ("kargs", "desc"):
                self._note(con, name, key, "")
            con.execute('DELETE FROM "groups" WHERE name = ?', (name,))

    def _group(self, name: str, column: str) -> str:
        rows = self.db.rows(f'SELECT "{column}" FROM "groups" WHERE name = ?', (name,))  # noqa: S608 - kargs, desc
        return str(rows[0][0]) if rows else ""

    def _set_group(self, name: str, column: str, value: str) -> None:
        parse_group(name)
        with self.db.write() as con:
            self._note(con, name, column, value)
            con.execute(
                f'INSERT INTO "groups" (name, "{column}") VALUES (?, ?)'  # noqa: S608 - kargs, desc
                f' ON CONFLICT (name) DO UPDATE SET "{column}" = excluded."{column}"',
                (name, value),
            )
            con.execute("DELETE FROM \"groups\" WHERE kargs = '' AND \"desc\" = ''")

    def _note(self, con: Connection, name: str, column: str, new: str) -> None:
        row = con.execute(f'SELECT "{column}" FROM "groups" WHERE name = ?', (name,)).fetchone()  # noqa: S608
        old = str(row[0]) if row else ""
        if old != new:
            self._log(con, column, old, new, hostname=f"@{name}")
