"""The site's own attributes of nodes: names from site.toml, one line of text each."""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.registry.history import History
from provisioner.registry.sql import Connection, chunks


class Attributes(History):
    """The part of the registry that knows the nodes' attributes of the site's own.

    ``attribute_names`` are those that may be set; what is stored under other names is kept and not shown.
    """

    attribute_names: tuple[str, ...] = ()

    def attributes(self, nodeid: str) -> dict[str, str]:
        """A node's attributes that have a value, in the order of site.toml."""
        rows = self.db.rows('SELECT "key", value FROM node_attributes WHERE nodeid = ?', (nodeid,))
        return self._in_order({row[0]: row[1] for row in rows})

    def all_attributes(self) -> dict[str, dict[str, str]]:
        """NodeID → its attributes, of every node that has any."""
        found: dict[str, dict[str, str]] = {}
        for nodeid, key, value in self.db.each('SELECT nodeid, "key", value FROM node_attributes'):
            found.setdefault(nodeid, {})[key] = value
        return {nodeid: self._in_order(values) for nodeid, values in found.items()}

    def _in_order(self, values: dict[str, str]) -> dict[str, str]:
        return {name: values[name] for name in self.attribute_names if name in values}

    def _set_attribute(self, con: Connection, key: str, value: str, macs: Sequence[str]) -> None:
        """Within a transaction: set an attribute of nodes that are there; "" removes it."""
        # ``key`` is one of attribute_names: check_attributes has seen to it that it is letters, digits, "_" and "-".
        old = f"coalesce((SELECT a.value FROM node_attributes a WHERE a.nodeid = nodes.nodeid AND a.key = '{key}'), '')"  # noqa: S608
        for marks, some in chunks(macs):
            where = f"nodeid IN ({marks})"
            self._log_nodes(con, key, old, value, where, some)
            if value:
                con.execute(
                    'INSERT INTO node_attributes (nodeid, "key", value)'  # noqa: S608 - only marks
                    f" SELECT nodeid, ?, ? FROM nodes WHERE {where}"
                    ' ON CONFLICT (nodeid, "key") DO UPDATE SET value = excluded.value',
                    (key, value, *some),
                )
            else:
                con.execute(f'DELETE FROM node_attributes WHERE "key" = ? AND {where}', (key, *some))  # noqa: S608
