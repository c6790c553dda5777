"""What nodes are made of: a list of devices per kind of machine, kept once, and which node has which list."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from provisioner.devices import Device, format_devices
from provisioner.registry.db import Database
from provisioner.registry.sql import Connection, Row, chunks


@dataclass(frozen=True)
class Hardware:
    """The nodes (host names, sorted) that report exactly these devices."""

    nodes: tuple[str, ...]
    devices: tuple[Device, ...]


class Devices:
    """The part of the registry that knows the nodes' devices."""

    db: Database

    def record_devices(self, mac: str, devices: Sequence[Device], *, now: float | None = None) -> bool:
        """Replace what is known of a node's devices, whole; False: unknown node. Times are epoch seconds."""
        # Late: a command that lists nodes needs no digests.
        from capsulekit.files import sha256_bytes

        now = time.time() if now is None else now
        digest = sha256_bytes(format_devices(devices).encode("ascii"))
        with self.db.write() as con:
            if not con.execute("SELECT 1 FROM nodes WHERE nodeid = ?", (mac,)).fetchone():
                return False
            new = _hardware(con, digest, devices)
            old = con.execute("SELECT hardware FROM node_hardware WHERE nodeid = ?", (mac,)).fetchone()
            con.execute(
                "INSERT INTO node_hardware VALUES (?, ?, ?)"
                " ON CONFLICT (nodeid) DO UPDATE SET hardware = excluded.hardware, reported = excluded.reported",
                (mac, new, now),
            )
            if old is not None and old["hardware"] != new:
                _drop_unused(con, old["hardware"])
            return True

    def node_hardware(self) -> dict[str, tuple[int, float]]:
        """NodeID → the number of the node's list (see devices_of), and when it was last sent (epoch seconds)."""
        rows = self.db.each("SELECT nodeid, hardware, reported FROM node_hardware")
        return {row["nodeid"]: (int(row["hardware"]), float(row["reported"])) for row in rows}

    def devices_of(self, hardware: int) -> tuple[Device, ...]:
        """The devices of a list, sorted; empty when there is no such list (any more)."""
        return tuple(sorted(_device(row) for row in self.db.rows(f"{_SELECT} WHERE d.hardware = ?", (hardware,))))

    def hardware(self) -> Iterator[Hardware]:
        """Every kind of machine with its nodes, one after the other, all as of one moment: it is one query."""
        for _, group in itertools.groupby(self.db.each(_FLEET), key=lambda row: int(row["hardware"])):
            nodes, devices = list[str](), list[Device]()
            for row in group:
                if row["hostname"] is None:
                    devices.append(_device(row))
                else:
                    nodes.append(row["hostname"])
            yield Hardware(tuple(sorted(nodes)), tuple(sorted(devices)))

    def known_modules(self) -> dict[str, set[str]]:
        """Modalias → loadable modules that drove such a device on some node."""
        known: dict[str, set[str]] = {}
        for row in self.db.each("SELECT DISTINCT modalias, module FROM device_kinds WHERE module <> ''"):
            known.setdefault(row["modalias"], set()).add(row["module"])
        return known

    def known_drivers(self) -> dict[str, set[str]]:
        """Modalias → names of drivers that are bound to such a device on some node, and of their modules."""
        known: dict[str, set[str]] = {}
        for row in self.db.each("SELECT modalias, driver, module FROM device_kinds WHERE driver <> ''"):
            known.setdefault(row["modalias"], set()).update(name for name in (row["driver"], row["module"]) if name)
        return known

    def modaliases(self) -> list[str]:
        """Every modalias any node reported, once, sorted."""
        return [row[0] for row in self.db.rows("SELECT DISTINCT modalias FROM device_kinds ORDER BY modalias")]

    def never_reported(self) -> list[str]:
        """Host names of the nodes that never sent their devices."""
        sql = "SELECT hostname FROM nodes WHERE nodeid NOT IN (SELECT nodeid FROM node_hardware)"
        sql += " ORDER BY lower(hostname)"
        return [row["hostname"] for row in self.db.rows(sql)]


_SELECT = (
    "SELECT d.hardware, k.modalias, k.driver, k.module, d.boot, d.number"
    " FROM devices d JOIN device_kinds k ON k.id = d.kind"
)


# Both halves of a kind of machine, its nodes and its devices.
_FLEET = (
    "SELECT hardware, hostname, NULL AS modalias, NULL AS driver, NULL AS module, NULL AS boot, NULL AS number"
    " FROM node_hardware JOIN nodes USING (nodeid)"
    " UNION ALL SELECT d.hardware, NULL, k.modalias, k.driver, k.module, d.boot, d.number"
    " FROM devices d JOIN device_kinds k ON k.id = d.kind ORDER BY hardware"
)


def forget_devices(con: Connection, macs: Sequence[str]) -> None:
    """Within a transaction: forget the nodes' devices, and every list with them that no other node has."""
    lists: set[int] = set()
    for marks, some in chunks(macs):
        where = f"node_hardware WHERE nodeid IN ({marks})"
        lists.update(row[0] for row in con.execute(f"SELECT DISTINCT hardware FROM {where}", some))  # noqa: S608
        con.execute(f"DELETE FROM {where}", some)  # noqa: S608 - only marks
    for hardware in sorted(lists):
        _drop_unused(con, hardware)


def _hardware(con: Connection, digest: str, devices: Sequence[Device]) -> int:
    """The number of a list of devices, written down when it is new."""
    known = con.execute("SELECT id FROM hardware WHERE digest = ?", (digest,)).fetchone()
    if known is not None:
        return int(known["id"])
    con.execute("INSERT INTO hardware (digest) VALUES (?)", (digest,))
    number = int(con.execute("SELECT id FROM hardware WHERE digest = ?", (digest,)).fetchone()["id"])
    for device in devices:
        kind = (device.modalias, device.driver, device.module)
        con.execute("INSERT INTO device_kinds (modalias, driver, module) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", kind)
        con.execute(
            "INSERT INTO devices SELECT ?, id, ?, ? FROM device_kinds WHERE modalias = ? AND driver = ? AND module = ?",
            (number, device.boot, device.count, *kind),
        )
    return number


def _drop_unused(con: Connection, hardware: int) -> None:
    """Remove a list that no node has any more, and the kinds that were in no other list."""
    if con.execute("SELECT 1 FROM node_hardware WHERE hardware = ? LIMIT 1", (hardware,)).fetchone():
        return
    kinds = con.execute("SELECT DISTINCT kind FROM devices WHERE hardware = ?", (hardware,)).fetchall()
    con.execute("DELETE FROM devices WHERE hardware = ?", (hardware,))
    con.execute("DELETE FROM hardware WHERE id = ?", (hardware,))
    for row in kinds:
        con.execute(
            "DELETE FROM device_kinds WHERE id = ? AND NOT EXISTS (SELECT 1 FROM devices WHERE kind = ?)",
            (row["kind"], row["kind"]),
        )


def _device(row: Row) -> Device:
    return Device(row["modalias"], row["driver"], row["module"], bool(row["boot"]), int(row["number"]))
