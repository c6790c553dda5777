"""Cloning: what a capsule is now, and what was imported, under another name; the blobs are shared."""

from __future__ import annotations

import time
from dataclasses import replace

from capsulekit.capsule import manifest
from capsulekit.errors import CapsulekitError
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.vnfs.generation import stored
from provisioner.vnfs.install import check_name
from provisioner.vnfs.place import placing
from provisioner.vnfs.store import ANSWERS, VnfsStore


def clone(store: VnfsStore, name: str, new: str, *, dry_run: bool = False) -> InstalledCapsule:
    """Install what ``name`` is as ``new`` too; no node boots anything else because of it, and no blob is read.

    Its history is that of the import, and one line that says what it is a clone of. Raises UsageError for a wrong name,
    CapsulekitError when ``new`` is taken or ``name`` unknown or damaged.
    """
    check_name(new)
    row = store.get(name)
    with store.lock():
        row = store.get(row.name)
        if store.registry.capsule(new) is not None:
            raise CapsulekitError(f"a capsule is installed as {new} already", hint="choose another name")
        store.members(row.name)  # raises when a part of it is gone
        made = replace(row, name=new, imported=time.time())
        if dry_run:
            return made
        first = store.history(row.name)[0]
        with placing(store, f"clone {row.name}") as placed:
            for identity in dict.fromkeys([row.identity, first.identity]):
                generation = stored(store, row, identity)
                texts = {**generation.texts, manifest.MEMBER: generation.manifest.dumps()}
                answers = store.generation(row.name, identity) / ANSWERS
                if answers.exists():
                    texts[ANSWERS] = answers.read_bytes()
                placed.generation(new, identity, texts, secret=frozenset([ANSWERS]))
            line = Past(row.identity, "clone", first.identity, f"clone of {row.name}")
            store.registry.install_capsule(made, [first, line])
    return made
