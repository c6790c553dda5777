"""Deleting capsules and generations: the registry first, then what nobody refers to any more, blobs last of all.

A generation that some node was told to boot last stays in the store until that node was told something else, whatever
the registry says: the node may be fetching it, or run on it and fetch a part of it again. The server records what it
hands out before the node learns of it, and then looks whether it is still what nodes boot; here it is the other way
round: the row goes first, and what nodes were told is read after that. So of a plan that is handed out while its
capsule is deleted, one of the two notices.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from capsulekit.capsule import layout
from capsulekit.edit.record import edits
from capsulekit.errors import CapsulekitError
from provisioner.registry.model import InstalledCapsule
from provisioner.vnfs.edits import told
from provisioner.vnfs.place import PRIVATE, sweep_parts, unfinished
from provisioner.vnfs.store import VnfsStore, private_members


@dataclass(frozen=True)
class KeptFor:
    """A deleted generation that stays in the store for these nodes, until they were told to boot something else."""

    name: str
    identity: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Deleted:
    """What a deletion came to: bytes that were freed, and what stays for whom."""

    freed: int
    kept: tuple[KeptFor, ...]


def delete(store: VnfsStore, names: list[str], *, used: bool = False) -> Deleted:
    """Delete capsules by their installed names, all or none.

    Raises CapsulekitError when nodes boot one of them, unless ``used``: they then wait at their boot screen; and when
    one is mounted for an edit. A delete that was killed after its rows were gone is finished by the next one.
    """
    with store.lock(), unfinished(store):
        refuse_edited(store, names)
        if not used:
            for name in names:  # first all of them, so that a refusal deletes none
                refuse_used(store, name)
        before = generations_of(store, names)
        store.registry.delete_capsules(names, used=used)
        return Deleted(free_unused(store), kept_for(store, before))


def delete_generations(store: VnfsStore, chosen: Mapping[str, Sequence[str]], *, by_age: bool = False) -> Deleted:
    """Delete older generations, identities by installed name: they can't be gone back to any more.

    Raises CapsulekitError as ``check_deletable`` does; nothing is deleted then.
    """
    with store.lock(), unfinished(store):
        for name, identities in chosen.items():
            check_deletable(store, name, identities, by_age=by_age)
        for name, identities in chosen.items():
            store.registry.forget_generations(name, identities, store.unwritten(store.get(name)))
        return Deleted(free_unused(store), kept_for(store, chosen))


def generations_of(store: VnfsStore, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The generations of capsules, identities by installed name, as far as that can be told."""
    found = {}
    for name in names:
        with suppress(CapsulekitError):  # its sums are damaged
            found[name] = store.generations(name)
    return found


def older_generations(store: VnfsStore, name: str, keep: int) -> tuple[str, ...]:
    """Identities that go when the newest ``keep`` older ones stay, and what nodes boot, and what was imported."""
    return store.generations(name)[1 + (store.origin(name) != store.get(name).identity) :][keep:]


def check_deletable(store: VnfsStore, name: str, identities: Sequence[str], *, by_age: bool = False) -> None:
    """Raise CapsulekitError when one of these generations is what nodes boot, was imported, or is being edited.

    ``by_age``: they are what ``older_generations`` found; what nodes boot can only have come to be so since then.
    """
    current = store.get(name).identity
    if by_age and current in identities:
        raise CapsulekitError(
            f"{name} was changed meanwhile: generation {current[:16]}… is what nodes boot now",
            hint="nothing was deleted; give the command again",
        )
    for identity, what in ((current, "what nodes boot"), (store.origin(name), "what was imported")):
        if identity in identities:
            raise CapsulekitError(
                f"generation {identity[:16]}… of {name} is {what}: it goes only with all of {name}",
                hint="older ones can be deleted: see capsulekit vnfs history " + name,
            )
    for record in edits(store.paths.state):
        if not record.file and record.name == name and record.base in identities:
            raise CapsulekitError(told(record), hint=f"first: capsulekit umount {name}, or capsulekit close {name}")


def kept_for(store: VnfsStore, chosen: Mapping[str, Sequence[str]]) -> tuple[KeptFor, ...]:
    """Of generations, identities by installed name, those that nodes were told to boot last, with these nodes."""
    handed = store.registry.handed_out()
    return tuple(
        KeptFor(name, identity, tuple(handed[name, identity]))
        for name, identities in chosen.items()
        for identity in identities
        if (name, identity) in handed
    )


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


def refuse_edited(store: VnfsStore, names: Sequence[str]) -> None:
    """Raise CapsulekitError when one of these capsules is mounted for an edit, also before the master was restarted."""
    for record in edits(store.paths.state):
        if not record.file and record.name in names:
            raise CapsulekitError(
                told(record), hint=f"capsulekit umount {record.name}, or discard it: capsulekit close {record.name}"
            )


def roles_left(store: VnfsStore, names: list[str]) -> list[tuple[str, str]]:
    """(module, role) of what is activated for capsules of these names: it counts again when one is imported."""
    return store.registry.roles_of("vnfs", names)


def free_unused(store: VnfsStore) -> int:
    """Take away what nothing leads to: folders of capsules and generations, and their blobs; returns bytes freed.

    Histories, nodes that were told to boot one, and edits lead to generations. The caller holds the store's lock. Where
    the sums of one of these are damaged nothing is freed: which blobs are its own can't be told.
    """
    sweep_parts(store)
    try:
        kept = _kept(store)
        listed = [(name, one, store.digests(name, one)) for name, some in kept.items() for one in some]
    except CapsulekitError:
        return 0
    _remove_folders(store, kept)
    freed = _remove_blobs(store, {sha256 for _, _, digests in listed for sha256 in digests.values()})
    _close_private(store, listed)
    return freed


def _close_private(store: VnfsStore, listed: Sequence[tuple[str, str, Mapping[str, str]]]) -> None:
    """What was public in a generation that is gone, and is private in all that have it now, is for nodes alone again.

    ``listed`` are (name, identity, digests by member) of all that stays.
    """
    public, private = set[str](), set[str]()
    for name, identity, digests in listed:
        hidden = frozenset[str]()
        with suppress(CapsulekitError):  # damaged: a verify says so
            hidden = private_members(store.manifest(name, identity))
        for member, sha256 in digests.items():
            (private if member in hidden else public).add(sha256)
    for sha256 in private - public:
        with suppress(FileNotFoundError):
            blob = store.blob(sha256)
            if blob.stat().st_mode & 0o007:
                blob.chmod(PRIVATE)


def size_of(store: VnfsStore, row: InstalledCapsule) -> int:
    """Bytes of all members of all generations of a capsule, also of those it shares with others; 0 when damaged."""
    name, blobs = row.name, set[str]()
    try:
        for identity in store.generations(name):
            blobs |= set(store.digests(name, identity).values())
    except CapsulekitError:
        return 0
    total = 0
    for sha256 in blobs:
        with suppress(OSError):
            total += store.blob(sha256).stat().st_size
    return total


def _kept(store: VnfsStore) -> dict[str, set[str]]:
    """The generations that stay, identities by name. Raises CapsulekitError when that can't be told."""
    kept = {row.name: set(store.generations(row.name)) for row in store.list()}
    others = set(store.registry.handed_out())
    for record in edits(store.paths.state):
        if not record.file:
            others |= {(record.name, record.base), (record.name, record.made)}
    for name, identity in others:
        # What is gone already was deleted before anybody was told of it, or is damage that a verify names.
        if name and identity and (store.generation(name, identity) / layout.SUMS).exists():
            kept.setdefault(name, set()).add(identity)
    return kept


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
