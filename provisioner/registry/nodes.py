"""The nodes' rows: adding with a free name, setting, deleting, each in one transaction."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.registry.capsules import Capsules
from provisioner.registry.defaults import Defaults
from provisioner.registry.devices import forget_devices
from provisioner.registry.model import Node
from provisioner.registry.names import parse_group, parse_mac, parse_name, template_names
from provisioner.registry.selectors import Selection, select

COLUMNS = tuple(f.name for f in fields(Node))
_LIST = ", ".join(f'"{c}"' for c in COLUMNS)
_INSERT = f"INSERT INTO nodes ({_LIST}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own columns
# What `node set` may change; `group` is the manual's second word for groupname.
ALIASES = {"group": "groupname"}
SETTABLE = ("hostname", "groupname", "vnfs", "enabled", "debug", "desc", "boot", "kargs")


class DuplicateNode(CapsulekitError):
    """The MAC or the name is taken."""


class Nodes(Capsules):
    """The part of the registry that knows the nodes."""

    def add_node(self, mac: str, name: str | None = None, *, defaults: Defaults, accepted: bool = True) -> Node:
        """Add a machine, under ``name`` (HOST[.CLUSTER]) or the first free name of the template.

        Raises DuplicateNode for a taken MAC or name, CapsulekitError for a wrong one or a used-up template.
        """
        nodeid = parse_mac(mac)
        wanted = [parse_name(name)] if name else template_names(defaults.node_name, defaults.first_node)
        vnfs = self._default_capsule(defaults.vnfs)
        with self.db.write() as con:
            row = con.execute("SELECT hostname FROM nodes WHERE nodeid = ?", (nodeid,)).fetchone()
            if row:
                raise DuplicateNode(f"{nodeid} is registered already, as node {row['hostname']!r}")
            taken = {row["hostname"].lower() for row in con.execute("SELECT hostname FROM nodes")}
            for host, cluster in wanted:
                if host.lower() in taken:
                    continue
                node = Node(
                    nodeid, host, cluster, parse_group(defaults.group), vnfs, defaults.enabled,
                    accepted=accepted, machine_id=os.urandom(16).hex(), created=time.time(),
                )  # fmt: skip
                if _insert(con, node):
                    return node
        if name:
            raise DuplicateNode(f"there is a node {host!r} already", hint="names are unique in the site")
        raise CapsulekitError(
            f"every name of the template {defaults.node_name!r} is in use",
            hint='add a # to node_name in defaults.toml, or name the node: "node add MAC NAME"',
        )

    def node(self, mac: str) -> Node | None:
        """The node of a NodeID (upper case, colons), or None."""
        rows = self.db.rows(f"SELECT {_LIST} FROM nodes WHERE nodeid = ?", (mac,))  # noqa: S608
        return _node(rows[0]) if rows else None

    def nodes(self) -> list[Node]:
        """Every node, by host name."""
        return [_node(row) for row in self.db.rows(f"SELECT {_LIST} FROM nodes ORDER BY hostname, nodeid")]  # noqa: S608

    def select(self, words: Sequence[str], by_mac: bool = False) -> Selection:
        """The nodes that words of the selector grammar name, and what matched nothing. Raises UsageError."""
        return select(words, self.nodes(), by_mac)

    def set_nodes(self, key: str, value: str, macs: Sequence[str]) -> int:
        """Set one attribute of some nodes, of all or, when anything is wrong, of none; returns how many.

        Raises CapsulekitError for an unknown key, a value that cannot be, an unknown capsule or node, a taken name.
        """
        changes = self.parse_setting(key, value)
        if "hostname" in changes and len(set(macs)) > 1:
            raise CapsulekitError("a host name can be given to one node only: names are unique in the site")
        try:
            return self._change(changes, macs)
        except DuplicateNode as error:
            raise DuplicateNode(f"there is a node {changes['hostname']!r} already") from error

    def parse_setting(self, key: str, value: str) -> dict[str, Any]:
        """The columns a ``node set KEY VALUE`` would change, checked; changes nothing. Raises CapsulekitError."""
        column = ALIASES.get(key, key)
        if column not in SETTABLE:
            raise CapsulekitError(f"unknown node attribute {key!r}", hint="known: " + ", ".join(SETTABLE))
        if column == "hostname":
            host, cluster = parse_name(value)
            # HOST alone renames the system and leaves it in its cluster.
            return {"hostname": host, "cluster": cluster} if cluster else {"hostname": host}
        if column == "vnfs":
            return {"vnfs": self.find_capsule(value).name if value else ""}
        return {column: _PARSERS.get(column, _line)(value)}

    def accept_nodes(self, macs: Sequence[str]) -> int:
        """Let nodes that wait for acceptance go on."""
        return self._change({"accepted": True}, macs)

    def delete_node(self, mac: str) -> None:
        """Forget a node with its history, devices, tickets and sessions. Raises CapsulekitError when there is none."""
        self.delete_nodes([mac])

    def delete_nodes(self, macs: Sequence[str]) -> int:
        """Forget several nodes, or none when one is unknown; returns how many."""
        with self.db.write() as con:
            for mac in dict.fromkeys(macs):
                if not con.execute("DELETE FROM nodes WHERE nodeid = ?", (mac,)).rowcount:
                    raise CapsulekitError(f"no node has the NodeID {mac}")
                for table in ("events", "tickets", "sessions"):
                    con.execute(f"DELETE FROM {table} WHERE nodeid = ?", (mac,))  # noqa: S608 - the three above
                forget_devices(con, mac)
        return len(set(macs))

    def _change(self, changes: dict[str, Any], macs: Sequence[str]) -> int:
        columns = ", ".join(f'"{c}" = ?' for c in changes)
        sql = f"UPDATE nodes SET {columns} WHERE nodeid = ?"  # noqa: S608 - columns of SETTABLE
        with self.db.write() as con:
            for mac in dict.fromkeys(macs):
                try:
                    done = con.execute(sql, (*changes.values(), mac)).rowcount
                except sqlite3.IntegrityError as error:
                    raise DuplicateNode(str(error)) from error
                if not done:
                    raise CapsulekitError(f"no node has the NodeID {mac}")
        return len(set(macs))

    def _default_capsule(self, name: str) -> str:
        """The installed name behind the default; as written while no such capsule is installed (the node waits)."""
        try:
            return self.find_capsule(name).name if name else ""
        except CapsulekitError:
            return name


def _insert(con: sqlite3.Connection, node: Node) -> bool:
    """Insert, or False when another writer took the name since we looked."""
    try:
        con.execute(_INSERT, tuple(asdict(node).values()))
    except sqlite3.IntegrityError:
        return False
    return True


def _node(row: sqlite3.Row) -> Node:
    values = dict(row)
    return Node(**{**values, "enabled": bool(values["enabled"]), "accepted": bool(values["accepted"])})


def _enabled(value: str) -> bool:
    words = {"1": True, "yes": True, "0": False, "no": False}
    if value.lower() not in words:
        raise CapsulekitError(f"enabled cannot be {value!r}", hint="1 or yes, 0 or no")
    return words[value.lower()]


def _debug(value: str) -> int:
    level = {"no": "0", "yes": "1"}.get(value.lower(), value)
    if level not in ("0", "1", "2", "3"):
        raise CapsulekitError(f"debug cannot be {value!r}", hint="0 to 3; yes is 1, no is 0")
    return int(level)


def _line(value: str) -> str:
    if not value.isprintable() or len(value) > 1500:
        raise CapsulekitError("the value must be one line of at most 1500 characters, without control characters")
    return value.strip()


_PARSERS: dict[str, Callable[[str], Any]] = {"groupname": parse_group, "enabled": _enabled, "debug": _debug}
