"""The nodes' rows: adding with a free name, setting, replacing, deleting, each in one transaction with its history."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.registry.attributes import Attributes
from provisioner.registry.capsules import Capsules
from provisioner.registry.defaults import Defaults
from provisioner.registry.devices import forget_devices
from provisioner.registry.model import Node
from provisioner.registry.names import parse_group, parse_mac, parse_name, template_names
from provisioner.registry.selectors import Selection, select
from provisioner.registry.settings import ALIASES, SETTABLE, UNIQUE, parse_value
from provisioner.registry.sql import Connection, Row, chunks

COLUMNS = tuple(f.name for f in fields(Node))
_values = attrgetter(*COLUMNS)
_LIST = ", ".join(f'"{c}"' for c in COLUMNS)
_INSERT = f"INSERT INTO nodes ({_LIST}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own columns
_ENABLED, _ACCEPTED = COLUMNS.index("enabled"), COLUMNS.index("accepted")
# What goes with a node, beside its devices.
_OF_NODES = ("events", "tickets", "sessions", "leases", "node_attributes", "booted", "trees", "tree_lists")


class DuplicateNode(CapsulekitError):
    """The MAC, the name or the address is taken."""


class Nodes(Capsules, Attributes):
    """The part of the registry that knows the nodes."""

    def add_node(self, mac: str, name: str | None = None, *, defaults: Defaults, accepted: bool = True) -> Node:
        """Add a machine, under ``name`` (HOST[.CLUSTER]) or the first free name of the template.

        Raises DuplicateNode for a taken MAC or name, CapsulekitError for a wrong one or a used-up template.
        """
        return self.add_nodes([(mac, name)], defaults=defaults, accepted=accepted)[0]

    def add_nodes(
        self, machines: Sequence[tuple[str, str | None]], *, defaults: Defaults, accepted: bool = True
    ) -> list[Node]:
        """Add machines, each (MAC, name or None), all of them or, when one cannot be added, none.

        Raises as add_node does.
        """
        wanted = [(parse_mac(mac), parse_name(name) if name else None) for mac, name in machines]
        group, vnfs = parse_group(defaults.group), self._default_capsule(defaults.vnfs)
        free = template_names(defaults.node_name, defaults.first_node)
        added: list[Node] = []
        with self.db.write() as con:
            known = {row["nodeid"]: row["hostname"] for row in con.execute("SELECT nodeid, hostname FROM nodes")}
            taken = {hostname.lower() for hostname in known.values()}
            # Names that are asked for are not given to others by the template.
            asked = {name[0].lower() for _, name in wanted if name}
            for nodeid, name in wanted:
                if nodeid in known:
                    raise DuplicateNode(f"{nodeid} is registered already, as node {known[nodeid]!r}")
                host, cluster = name or _first_free(free, taken | asked if asked else taken, defaults)
                if host.lower() in taken:
                    raise DuplicateNode(f"there is a node {host!r} already", hint="names are unique in the site")
                node = Node(
                    nodeid, host, cluster, group, vnfs, defaults.enabled,
                    accepted=accepted, machine_id=os.urandom(16).hex(), created=time.time(),
                )  # fmt: skip
                known[nodeid] = host
                taken.add(host.lower())
                added.append(node)
            con.executemany(_INSERT, list(map(_values, added)))
            self._log_many(con, [(node.nodeid, node.hostname, "added", "", node.name) for node in added])
        return added

    def node(self, mac: str) -> Node | None:
        """The node with this NodeID."""
        return self.nodes_of([mac]).get(mac)

    def nodes_of(self, macs: Sequence[str]) -> dict[str, Node]:
        """NodeID → node, of those that are nodes."""
        found: dict[str, Node] = {}
        for marks, some in chunks(macs):
            sql = f"SELECT {_LIST} FROM nodes WHERE nodeid IN ({marks})"  # noqa: S608 - our own columns, and marks
            found.update((row[0], _node(row)) for row in self.db.rows(sql, some))
        return found

    def nodes(self) -> list[Node]:
        """Every node, by host name."""
        return list(self.each_node())

    def each_node(self) -> Iterator[Node]:
        """Every node, by host name, one after the other, all as of one moment."""
        return map(_node, self.db.each(f"SELECT {_LIST} FROM nodes ORDER BY lower(hostname)"))  # noqa: S608

    def select(self, words: Sequence[str], by_mac: bool = False) -> Selection:
        """The nodes that words of the selector grammar name, and what matched nothing. Raises UsageError."""
        return select(words, self.nodes(), by_mac)

    def set_nodes(self, key: str, value: str, macs: Sequence[str]) -> int:
        """Set one attribute of some nodes, of all or, when anything is wrong, of none; returns how many.

        Raises CapsulekitError for an unknown key, a value that cannot be, an unknown capsule or node, a taken name.
        """
        changes = self.parse_setting(key, value)
        if key in self.attribute_names:
            with self.db.write() as con:
                self._require(con, macs)
                self._set_attribute(con, key, changes[key], macs)
            return len(set(macs))
        for column, what in UNIQUE.items():
            if changes.get(column) and len(set(macs)) > 1:
                article = "an" if what[0] == "a" else "a"
                raise CapsulekitError(f"{article} {what} can be given to one node only: it is unique in the site")
        return self._change(changes, macs)

    def set_each(self, key: str, values: Mapping[str, str]) -> None:
        """Set one attribute of some nodes, NodeID → its own value, of all or of none; raises as set_nodes does.

        A handful of statements whatever their number: an import gives thousands of nodes an address each.
        """
        if key in self.attribute_names:
            with self.db.write():
                for mac, value in values.items():
                    self.set_nodes(key, value, [mac])
            return
        changes = {mac: self.parse_setting(key, value) for mac, value in values.items()}
        with self.db.write() as con:
            self._require(con, list(values))
            old: dict[str, Row] = {}
            for marks, some in chunks(list(values)):
                sql = f"SELECT {_LIST} FROM nodes WHERE nodeid IN ({marks})"  # noqa: S608 - only columns and marks
                old |= {row["nodeid"]: row for row in con.execute(sql, some).fetchall()}
            self._refuse_taken_each(con, changes)
            lines = [
                (mac, old[mac]["hostname"], column, _text(old[mac][column]), _text(new))
                for mac, columns in changes.items()
                for column, new in columns.items()
            ]
            self._log_many(con, [line for line in lines if line[3] != line[4]])
            # HOST and HOST.CLUSTER set different columns.
            for columns in dict.fromkeys(tuple(one) for one in changes.values()):
                sets = ", ".join(f'"{column}" = ?' for column in columns)
                rows = [(*one.values(), mac) for mac, one in changes.items() if tuple(one) == columns]
                con.executemany(f"UPDATE nodes SET {sets} WHERE nodeid = ?", rows)  # noqa: S608 - our own columns

    def parse_setting(self, key: str, value: str) -> dict[str, Any]:
        """The columns a ``node set KEY VALUE`` would change, checked; changes nothing. Raises CapsulekitError."""
        column = ALIASES.get(key, key)
        if column in self.attribute_names:
            return {column: parse_value(column, value)}
        if column not in SETTABLE:
            known = ", ".join((*SETTABLE, *self.attribute_names))
            raise CapsulekitError(f"unknown node attribute {key!r}", hint=f"known: {known}")
        if column == "hostname":
            host, cluster = parse_name(value)
            # HOST alone renames the system and leaves it in its cluster.
            return {"hostname": host, "cluster": cluster} if cluster else {"hostname": host}
        if column == "vnfs":
            return {"vnfs": self.find_capsule(value).name if value else ""}
        return {column: parse_value(column, value)}

    def accept_nodes(self, macs: Sequence[str]) -> int:
        """Let nodes that wait for acceptance go on."""
        return self._change({"accepted": True}, macs)

    def replace_node(self, old_mac: str, new_mac: str) -> Node:
        """Another machine takes a node's place, with its name, settings and history; what the old one was goes.

        Where the new machine has joined as a node itself, that name goes, and what it reported stays with it. Raises
        CapsulekitError when there is no such node, the new MAC is none, or both are the same.
        """
        old, new = parse_mac(old_mac), parse_mac(new_mac)
        if old == new:
            raise CapsulekitError(f"{old} cannot be replaced by itself")
        with self.db.write() as con:
            self._require(con, [old])
            joined = con.execute(f"SELECT {_LIST} FROM nodes WHERE nodeid = ?", (new,)).fetchone()  # noqa: S608
            other = _node(joined) if joined else Node(new, "")
            if joined:
                for table in ("nodes", "node_attributes"):
                    con.execute(f"DELETE FROM {table} WHERE nodeid = ?", (new,))  # noqa: S608 - the two above
                self._log(con, "deleted", other.name, "", nodeid=new, hostname=other.hostname)
            forget_devices(con, [old])
            for table in ("tickets", "sessions", "leases", "booted", "trees", "tree_lists"):
                con.execute(f"DELETE FROM {table} WHERE nodeid = ?", (old,))  # noqa: S608 - the six above
            con.execute(
                "UPDATE nodes SET nodeid = ?, status = ?, status_time = ?, ipaddr = ?, lastcontact = ?, error = ?"
                " WHERE nodeid = ?",
                (new, other.status, other.status_time, other.ipaddr, other.lastcontact, other.error, old),
            )
            for table in ("events", "changes", "node_attributes"):
                con.execute(f"UPDATE {table} SET nodeid = ? WHERE nodeid = ?", (new, old))  # noqa: S608
            row = con.execute(f"SELECT {_LIST} FROM nodes WHERE nodeid = ?", (new,)).fetchone()  # noqa: S608
            self._log(con, "nodeid", old, new, nodeid=new, hostname=row["hostname"])
            return _node(row)

    def delete_node(self, mac: str) -> None:
        """Forget a node and all of it but its changes. Raises CapsulekitError when there is none."""
        self.delete_nodes([mac])

    def delete_nodes(self, macs: Sequence[str]) -> int:
        """Forget several nodes, or none when one is unknown; returns how many."""
        with self.db.write() as con:
            self._require(con, macs)
            gone: list[tuple[str, str, str, str, str]] = []
            for marks, some in chunks(macs):
                sql = f"SELECT {_LIST} FROM nodes WHERE nodeid IN ({marks})"  # noqa: S608 - only columns and marks
                nodes = map(_node, con.execute(sql, some).fetchall())
                gone += [(node.nodeid, node.hostname, "deleted", node.name, "") for node in nodes]
                for table in ("nodes", *_OF_NODES):
                    con.execute(f"DELETE FROM {table} WHERE nodeid IN ({marks})", some)  # noqa: S608
            forget_devices(con, macs)
            self._log_many(con, gone)
        return len(set(macs))

    def _change(self, changes: dict[str, Any], macs: Sequence[str]) -> int:
        columns = ", ".join(f'"{c}" = ?' for c in changes)
        with self.db.write() as con:
            self._require(con, macs)
            self._refuse_taken(con, changes, macs)
            for marks, some in chunks(macs):
                where = f"nodeid IN ({marks})"
                for column, new in changes.items():
                    self._log_nodes(con, column, f'CAST("{column}" AS TEXT)', _text(new), where, some)
                con.execute(f"UPDATE nodes SET {columns} WHERE {where}", (*changes.values(), *some))  # noqa: S608
        return len(set(macs))

    def _require(self, con: Connection, macs: Sequence[str]) -> None:
        """Raise CapsulekitError naming the first of ``macs`` that is no node's."""
        known: set[str] = set()
        for marks, some in chunks(macs):
            known.update(r[0] for r in con.execute(f"SELECT nodeid FROM nodes WHERE nodeid IN ({marks})", some))  # noqa: S608
        for mac in macs:
            if mac not in known:
                raise CapsulekitError(f"no node has the NodeID {mac}")

    def _refuse_taken(self, con: Connection, changes: dict[str, Any], macs: Sequence[str]) -> None:
        """Raise DuplicateNode when the name or the address is another node's."""
        self._refuse_taken_each(con, dict.fromkeys(macs, changes))

    def _refuse_taken_each(self, con: Connection, changes: Mapping[str, dict[str, Any]]) -> None:
        """The same for nodes that get values of their own: NodeID → column → value."""
        for column, what in UNIQUE.items():
            wanted: dict[str, str] = {}
            for mac, one in changes.items():
                if one.get(column) and wanted.setdefault(one[column].lower(), mac) != mac:
                    raise DuplicateNode(f"the {what} {one[column]} is wanted for two nodes")
            # In the words of the column's index, which is then used. An address has one spelling (parse_address).
            where = "lower(hostname)" if column == "hostname" else "address <> '' AND address"
            for marks, some in chunks(list(wanted)):
                sql = f"SELECT nodeid, hostname, {column} FROM nodes WHERE {where} IN ({marks})"  # noqa: S608
                for row in con.execute(sql, some).fetchall():
                    mac = wanted[row[column].lower()]
                    if row["nodeid"] == mac:
                        continue
                    if column == "hostname":
                        raise DuplicateNode(f"there is a node {changes[mac][column]!r} already")
                    raise DuplicateNode(f"the {what} {row[column]} is that of node {row['hostname']!r}")

    def _default_capsule(self, name: str) -> str:
        """The installed name behind the default; as written while no such capsule is installed (the node waits)."""
        try:
            return self.find_capsule(name).name if name else ""
        except CapsulekitError:
            return name


def _first_free(names: Iterator[tuple[str, str]], taken: set[str], defaults: Defaults) -> tuple[str, str]:
    """The next of a template's names that is nobody's. Raises CapsulekitError when there is none."""
    for host, cluster in names:
        if host.lower() not in taken:
            return host, cluster
    raise CapsulekitError(
        f"every name of the template {defaults.node_name!r} is in use",
        hint='add a # to node_name in defaults.toml, or name the node: "node add MAC NAME"',
    )


def _node(row: Row) -> Node:
    values = [*row]
    values[_ENABLED], values[_ACCEPTED] = bool(values[_ENABLED]), bool(values[_ACCEPTED])
    return Node(*values)


def _text(value: object) -> str:
    """A value as SQL's CAST to text writes it."""
    return str(int(value)) if isinstance(value, bool) else str(value)
