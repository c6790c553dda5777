"""Deleting capsules: the row first, then what nobody refers to any more."""

from __future__ import annotations

import shutil
from contextlib import suppress

from capsulekit.errors import CapsulekitError
from provisioner.registry.model import InstalledCapsule
from provisioner.vnfs.place import sweep_parts
from provisioner.vnfs.store import VnfsStore


def delete(store: VnfsStore, names: list[str], *, used: bool = False) -> int:
    """Delete capsules by their installed names, all or none; returns the bytes that were freed.

    Raises CapsulekitError when nodes boot one of them, unless ``used``: they then wait at their boot screen. A delete
    that was killed after its rows were gone is finished by the next one.
    """
    with store.lock():
        if not used:
            for name in names:  # first all of them, so that a refusal deletes none
                refuse_used(store, name)
        store.registry.delete_capsules(names, used=used)
        return free_unused(store)


def refuse_used(store: VnfsStore, name: str) -> None:
    """Raise CapsulekitError naming the nodes that boot this capsule, or that new nodes get it."""
    from provisioner.registry.defaults import load_defaults

    way = "set another capsule there, or delete it all the same: --force"
    names = _names_of(store, name)
    nodes = [node for one in names for node in store.registry.nodes_of_capsule(one)]
    if nodes:
        raise CapsulekitError(f"{name} is booted by {_some(nodes)}", hint=way)
    if load_defaults(store.paths).vnfs in names:
        raise CapsulekitError(f"{name} is what new nodes get (defaults.toml)", hint=way)


def roles_left(store: VnfsStore, names: list[str]) -> list[tuple[str, str]]:
    """(module, role) of what is activated for capsules of these names: it counts again when one is imported."""
    return store.registry.roles_of("vnfs", names)


def _names_of(store: VnfsStore, name: str) -> list[str]:
    """What nodes and defaults may call this capsule: its name, and NAME alone where that means no other.

    NAME is kept where it was written before the capsule was installed.
    """
    row = store.get(name)
    short = row.name.removesuffix(f"-{row.version}.{row.arch}")
    try:
        return list(dict.fromkeys([row.name, short] if store.get(short).name == row.name else [row.name]))
    except CapsulekitError:  # several have it
        return [row.name]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def free_unused(store: VnfsStore) -> int:
    """Take away what no row leads to: folders of capsules and generations, and their blobs; returns bytes freed.

    The caller holds the store's lock. Where the sums of an installed capsule are damaged nothing is freed: which blobs
    are its own can't be told.
    """
    sweep_parts(store)
    kept: dict[str, set[str]] = {}
    blobs: set[str] = set()
    for row in store.list():
        try:
            kept[row.name] = set(store.generations(row.name))
            blobs |= _blobs(store, row)
        except CapsulekitError:
            return 0
    _remove_folders(store, kept)
    return _remove_blobs(store, blobs)


def size_of(store: VnfsStore, row: InstalledCapsule) -> int:
    """Bytes of all members of all generations of a capsule, also of those it shares with others; 0 when damaged."""
    try:
        blobs = _blobs(store, row)
    except CapsulekitError:
        return 0
    total = 0
    for sha256 in blobs:
        with suppress(OSError):
            total += store.blob(sha256).stat().st_size
    return total


def _blobs(store: VnfsStore, row: InstalledCapsule) -> set[str]:
    """The blobs of all generations. Raises CapsulekitError when the sums of one are damaged or gone."""
    name = row.name
    return {sha256 for identity in store.generations(name) for sha256 in store.digests(name, identity).values()}


def _remove_folders(store: VnfsStore, kept: dict[str, set[str]]) -> None:
    top = store.paths.state / "vnfs"
    for home in top.iterdir() if top.is_dir() else ():
        if not home.is_dir():
            continue
        for folder in home.iterdir():
            if folder.name not in kept.get(home.name, set()):
                shutil.rmtree(folder, ignore_errors=True)
        if home.name not in kept:
            shutil.rmtree(home, ignore_errors=True)


def _remove_blobs(store: VnfsStore, kept: set[str]) -> int:
    freed = 0
    for blob in (store.paths.state / "blobs").glob("??/*"):
        if blob.name not in kept:
            with suppress(FileNotFoundError):
                size = blob.stat().st_size
                blob.unlink()
                freed += size
    return freed
