"""Checking what is stored: signatures by keys that are trusted today, and every byte against the signed sums."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from capsulekit.capsule import layout, manifest
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.trust import minisign
from provisioner.registry.model import InstalledCapsule
from provisioner.sitekey import trusted_here
from provisioner.vnfs.store import VnfsStore, private_members

# What each kind of change makes of its own: nothing else of a generation may differ from the one it was changed from.
_EDIT = r"layers/[0-9]{2}-edit\.(squashfs|acl)"
_BOOT = r"boot/(vmlinuz|initrd\.img)|layers/modules\.(squashfs|acl)"
_SPLIT = r"hybridize|layers/hybrid\.squashfs|layers/[A-Za-z0-9][A-Za-z0-9._-]*\.(squashfs|acl)"
_MAKES = {
    "configure": r"layers/90-site\.(squashfs|acl)",
    "edit": f"{_EDIT}|{_BOOT}",
    "flatten": f"{_EDIT}|{_BOOT}",
    "kernel": f"{_EDIT}|{_BOOT}",
    "rebuild": f"{_EDIT}|{_BOOT}",
}


@dataclass(frozen=True)
class Checked:
    """What was checked of one capsule; ``wrong`` says in a line each what does not hold.

    ``changed`` are the members of what nodes boot that are not its author's, as the parents' sums tell.
    """

    capsule: InstalledCapsule
    members: int
    size: int
    wrong: tuple[str, ...]
    generations: int = 0
    changed: tuple[str, ...] = ()


def check(store: VnfsStore, name: str) -> Checked:
    """Check all generations of an installed capsule as they lie in the store. Raises CapsulekitError for an unknown."""
    row = store.get(name)
    wrong: list[str] = []
    sizes: dict[str, int] = {}
    changed: tuple[str, ...] = ()
    try:
        identities = store.generations(row.name)
        numbers = {past.identity: past.number for past in store.history(row.name)}
    except CapsulekitError as error:
        return Checked(row, 0, 0, (error.message,))
    for identity in identities:
        found = _check_generation(store, row, identity, sizes)
        # An error of what nodes boot needs no number: it is what is looked for.
        which = "" if identity == row.identity else f"generation {numbers.get(identity, 0)}: "
        wrong += [f"{which}{line}" for line in found if line not in wrong]
        if identity == row.identity:
            changed = _changed(store, row, identity)
    return Checked(row, len(sizes), sum(sizes.values()), tuple(dict.fromkeys(wrong)), len(identities), changed)


def check_generation(store: VnfsStore, row: InstalledCapsule, identity: str) -> tuple[str, ...]:
    """What does not hold of one generation, a line each."""
    return tuple(_check_generation(store, row, identity, {}))


def _check_generation(store: VnfsStore, row: InstalledCapsule, identity: str, sizes: dict[str, int]) -> list[str]:
    """What does not hold; ``sizes`` are those of the members (bytes by sha256) that were looked at before."""
    wrong: list[str] = []
    try:
        _check_signature(store, row, identity)
        digests = store.digests(row.name, identity)
    except CapsulekitError as error:
        return [error.message]
    # Plans are made from this copy, not from the member among the blobs.
    if sha256_bytes(store.read(row.name, manifest.MEMBER, identity)) != digests.get(manifest.MEMBER):
        wrong.append(f"the generation's {manifest.MEMBER} is not what was signed")
    for member, sha256 in digests.items():
        if sha256 not in sizes:
            sizes[sha256] = _check_blob(store, member, sha256, wrong)
    try:
        wrong += _check_parents(store, row, identity, digests)
        wrong += _check_kept(store, row, identity, digests)
    except CapsulekitError as error:
        wrong.append(error.message)
    return wrong


def _check_blob(store: VnfsStore, member: str, sha256: str, wrong: list[str]) -> int:
    """The size of a blob in bytes, 0 when it is gone or can't be read."""
    blob = store.blob(sha256)
    try:
        if sha256_file(blob) != sha256:
            wrong.append(f"{member} is not what was signed")
        return blob.stat().st_size
    except FileNotFoundError:
        wrong.append(f"{member} is gone")
    except OSError as error:
        wrong.append(f"{member} can't be read: {error.strerror}")
    return 0


def _check_signature(store: VnfsStore, row: InstalledCapsule, identity: str) -> None:
    """Raises TrustError when the generation is not what a key that is trusted now has signed."""
    keys, revoked = trusted_here(store.paths)
    text = store.read(row.name, layout.SIGNATURE, identity).decode("utf-8", "replace")
    told = manifest.loads(store.read(row.name, manifest.MEMBER, identity))
    wanted = minisign.parse_signature(text)
    if any(key.key_id == wanted.key_id for key in revoked):
        raise TrustError(f"signed by key {wanted.id}, which was revoked here")
    key = next((key for key in keys if key.key_id == wanted.key_id), None)
    if key is None:
        raise TrustError(f"signed by key {wanted.id}, which is not trusted here")
    if minisign.verify(store.read(row.name, layout.SUMS, identity), text, key) != told.trusted_comment:
        raise TrustError("the signature's trusted comment disagrees with the manifest")


def _check_kept(store: VnfsStore, row: InstalledCapsule, identity: str, digests: dict[str, str]) -> list[str]:
    """Private members that others may read: whoever asks would get them. What is public elsewhere is no secret."""
    private = _private(store, row.name, identity)
    found = [m for m in sorted(private) if m in digests and _is_open(store.blob(digests[m]))]
    if not found:
        return []
    public = set[str]()
    for other in store.list():
        with suppress(CapsulekitError):
            for one in store.generations(other.name):
                hidden = _private(store, other.name, one)
                public |= {sha256 for m, sha256 in store.digests(other.name, one).items() if m not in hidden}
    return [f"{m} is private, and others may read it" for m in found if digests[m] not in public]


def _private(store: VnfsStore, name: str, identity: str) -> frozenset[str]:
    return private_members(manifest.loads(store.read(name, manifest.MEMBER, identity)))


def _is_open(blob: Path) -> bool:
    try:
        return bool(blob.stat().st_mode & 0o007)
    except OSError:  # said elsewhere
        return False


def _check_parents(store: VnfsStore, row: InstalledCapsule, identity: str, digests: dict[str, str]) -> list[str]:
    """What a generation has that is neither its parent's nor of the kind that its change makes.

    Of a capsule that was changed elsewhere, and imported here, the kind is not known.
    """
    wrong = _check_authors(store, digests)
    parent = _parent(store, digests)
    making = [past for past in store.history(row.name) if past.identity == identity and past.kind in _MAKES]
    if parent is None:
        return ["it names nothing that it was made from"] if making else []
    if not making:
        return wrong
    # A hybrid layer is split off anew with each change: the layers that it is split from are others then, too.
    split = f"|{_SPLIT}" if manifest.HYBRID in {*digests, *parent} else ""
    makes = re.compile(_MAKES[making[0].kind] + split)
    return wrong + [f"{m} is not that of its parent" for m in _differing(digests, parent) if not makes.fullmatch(m)]


def _check_authors(store: VnfsStore, digests: Mapping[str, str]) -> list[str]:
    """Parents whose signature does not hold; that of a key which nobody here trusts says nothing."""
    keys, _ = trusted_here(store.paths)
    wrong = []
    for member in sorted(digests):
        if not member.startswith("parent/") or not member.endswith(f"/{layout.SIGNATURE}"):
            continue
        sums = digests.get(member.removesuffix(layout.SIGNATURE) + layout.SUMS, "")
        try:
            text = store.blob(digests[member]).read_text("utf-8", "replace")
            wanted = minisign.parse_signature(text)
            for key in keys:
                if key.key_id == wanted.key_id:
                    minisign.verify(store.blob(sums).read_bytes(), text, key)
        except (OSError, CapsulekitError):
            wrong.append(f"{member} does not hold")
    return wrong


def _changed(store: VnfsStore, row: InstalledCapsule, identity: str) -> tuple[str, ...]:
    """The members that no author of what a generation was made from has signed like that."""
    try:
        digests, found = store.digests(row.name, identity), list[set[str]]()
        for number in count():
            parent = _parent(store, digests, number)
            if parent is None:
                break
            # Parents of what was imported are others' business: its author has signed all of it.
            found.append(set(_differing(digests, parent)))
        return tuple(sorted(found[-1])) if found else ()
    except CapsulekitError:  # said elsewhere
        return ()


def _parent(store: VnfsStore, digests: Mapping[str, str], number: int = 0) -> dict[str, str] | None:
    """The listed members of parent/N, None where there is none. Raises CapsulekitError when its sums are damaged."""
    sha256 = digests.get(f"parent/{number}/{layout.SUMS}")
    if sha256 is None:
        return None
    try:
        return layout.load_sums(store.blob(sha256).read_bytes())
    except OSError as wrong:
        raise CapsulekitError(f"parent/{number}/{layout.SUMS} can't be read: {wrong.strerror}") from wrong


def _differing(digests: Mapping[str, str], parent: Mapping[str, str]) -> list[str]:
    """Members that are in one of the two only, or are not the same, but for what every generation has of its own."""
    own = {m: s for m, s in digests.items() if m != manifest.MEMBER and not m.startswith("parent/")}
    theirs = {m: s for m, s in parent.items() if m != manifest.MEMBER and not m.startswith("parent/")}
    return sorted(m for m in {*own, *theirs} if own.get(m) != theirs.get(m))
