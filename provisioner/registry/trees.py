"""The lists of files that nodes send: one a node, the last one, compressed."""

from __future__ import annotations

import base64
import json
import time
import zlib
from dataclasses import dataclass
from hashlib import sha256

from capsulekit.errors import CapsulekitError
from provisioner.registry.history import History

MOST_UNPACKED = 4 << 20  # bytes; the server takes no longer ones


@dataclass(frozen=True)
class TreeMark:
    """That there is a node's list: its hex sha256, when it came, and until when the node said that it holds."""

    digest: str
    time: float
    seen: float


@dataclass(frozen=True)
class PackedTree:
    """A list as the registry keeps it: its hex sha256, and its text."""

    digest: str
    text: str


def pack_tree(data: bytes) -> PackedTree:
    """A list, ready to be kept: what takes its time of it, before anybody waits for the registry."""
    return PackedTree(sha256(data).hexdigest(), base64.b64encode(zlib.compress(data, 6)).decode())


class Trees(History):
    """The part of the registry that keeps the nodes' lists. Times are epoch seconds of the master's clock."""

    def tree_seen(self, mac: str, digest: str, *, now: float | None = None) -> bool:
        """A node said that its list is the one of this digest; False: that list is not here."""
        with self.db.write() as con:
            sql = "UPDATE trees SET seen = ? WHERE nodeid = ? AND digest = ?"
            return bool(con.execute(sql, (time.time() if now is None else now, mac, digest)).rowcount)

    def record_tree(self, mac: str, data: bytes | PackedTree, *, now: float | None = None) -> bool:
        """Keep a node's list, in place of the one before; False: unknown node."""
        now = time.time() if now is None else now
        packed = pack_tree(data) if isinstance(data, bytes) else data
        with self.db.write() as con:
            if con.execute("SELECT 1 FROM nodes WHERE nodeid = ?", (mac,)).fetchone() is None:
                return False
            con.execute(
                "INSERT INTO trees (nodeid, digest, time, seen) VALUES (?, ?, ?, ?) ON CONFLICT (nodeid)"
                " DO UPDATE SET digest = excluded.digest, time = excluded.time, seen = excluded.seen",
                (mac, packed.digest, now, now),
            )
            con.execute(
                "INSERT INTO tree_lists (nodeid, list) VALUES (?, ?)"
                " ON CONFLICT (nodeid) DO UPDATE SET list = excluded.list",
                (mac, packed.text),
            )
        return True

    def tree_marks(self) -> dict[str, TreeMark]:
        """NodeID → what is known of its list, without the list."""
        rows = self.db.each("SELECT nodeid, digest, time, seen FROM trees")
        return {row["nodeid"]: TreeMark(row["digest"], float(row["time"]), float(row["seen"])) for row in rows}

    def tree(self, mac: str) -> bytes | None:
        """A node's list, as it came. Raises CapsulekitError when the registry's row is damaged."""
        rows = self.db.rows("SELECT list FROM tree_lists WHERE nodeid = ?", (mac,))
        if not rows:
            return None
        try:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(base64.b64decode(rows[0]["list"], validate=True), MOST_UNPACKED)
        except (ValueError, zlib.error) as wrong:
            raise CapsulekitError(f"the list of files of {mac} in the registry is damaged") from wrong
        return data

    def record_synced(self, mac: str, identity: str, *, told: float, now: float | None = None) -> bool:
        """A livesync brought a running node to a generation: what it booted is kept in its outline as "under".

        ``told`` is when it was told what to boot, as livesync knew it; False: it has booted again since, or is gone.
        """
        with self.db.write() as con:
            row = con.execute(
                "SELECT b.time AS time, b.plan AS plan, n.hostname AS hostname FROM booted b"
                " JOIN nodes n ON n.nodeid = b.nodeid WHERE b.nodeid = ?",
                (mac,),
            ).fetchone()
            if row is None or float(row["time"]) != told:
                return False
            plan = json.loads(row["plan"])
            old = str(plan.get("identity", ""))
            plan |= {"identity": identity, "under": plan.get("under", old)}
            plan["synced"] = time.time() if now is None else now
            text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
            con.execute("UPDATE booted SET plan = ? WHERE nodeid = ?", (text, mac))
            self._log(con, "livesync", old, identity, nodeid=mac, hostname=row["hostname"])
        return True
