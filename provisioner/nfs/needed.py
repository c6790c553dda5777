"""Which hybrid layers nodes need, and the number that each one's export has."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from capsulekit.capsule.manifest import HYBRID
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from provisioner.registry.registry import Registry
from provisioner.server.plan import is_private
from provisioner.vnfs.store import VnfsStore

# Export ids of NFS servers have 16 bits: 0 is the root of all exports, 1 the public files.
BLOBS_ID, FIRST_ID, LAST_ID = 1, 2, 65535


class Needed:
    """The hybrid layers of all generations that nodes boot, or were handed last."""

    def __init__(self, store: VnfsStore, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._known: dict[tuple[str, str], str] = {}  # an identity's members never change

    def generations(self) -> frozenset[tuple[str, str]]:
        """(installed name, identity) of each such generation."""
        current = {(one.name, one.identity) for one in self._registry.capsules()}
        return frozenset(current | set(self._registry.handed_out()))

    def layers(self, generations: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Hex sha256 of each hybrid layer in the store -> the name of a capsule that has it, sorted by digest."""
        found: dict[str, str] = {}
        for name, identity in sorted(generations):
            sha256 = self._layer(name, identity)
            if sha256 and self._may_leave(sha256):
                found.setdefault(sha256, name)
        return dict(sorted(found.items()))

    def _may_leave(self, sha256: str) -> bool:
        """Whether a layer is in the store, and public."""
        try:
            return not is_private(self._store.blob(sha256))
        except FileNotFoundError:
            return False

    def _layer(self, name: str, identity: str) -> str:
        if (name, identity) not in self._known:
            try:
                found = self._store.digests(name, identity).get(HYBRID, "")
            except CapsulekitError:
                return ""  # a generation that was deleted although a node was handed it
            self._known[name, identity] = found
        return self._known[name, identity]


def export_ids(file: Path, layers: Collection[str]) -> Mapping[str, int]:
    """The export id of each layer (hex sha256), kept in ``file``: the same for as long as the layer is needed.

    It comes from the digest, so that a server that lost the file gives nearly always the same ones: handles that nodes
    hold name the export by it.
    """
    known = _read(file)
    chosen = {sha256: known[sha256] for sha256 in sorted(layers) if sha256 in known}
    for sha256 in sorted(layers):
        if sha256 in chosen:
            continue
        wish = FIRST_ID + int(sha256[:8], 16) % (LAST_ID - FIRST_ID + 1)
        taken = set(chosen.values())
        while wish in taken:
            wish = wish + 1 if wish < LAST_ID else FIRST_ID
        chosen[sha256] = wish
    if chosen != known:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(file, (json.dumps(chosen, indent=1, sort_keys=True) + "\n").encode())
    return chosen


def _read(file: Path) -> dict[str, int]:
    """What was chosen before; nothing where the file is missing or damaged."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        found = {str(k): int(v) for k, v in told.items() if FIRST_ID <= int(v) <= LAST_ID}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return found if len(set(found.values())) == len(found) else {}
