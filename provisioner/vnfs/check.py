"""Checking what is stored: signatures by keys that are trusted today, and every byte against the signed sums."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capsulekit.capsule import layout, manifest
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.trust import minisign
from provisioner.registry.model import InstalledCapsule
from provisioner.sitekey import trusted_here
from provisioner.vnfs.store import ANSWERS, SITE_LAYER, VnfsStore, private_members


@dataclass(frozen=True)
class Checked:
    """What was checked of one capsule; ``wrong`` says in a line each what does not hold."""

    capsule: InstalledCapsule
    members: int
    size: int
    wrong: tuple[str, ...]


def check(store: VnfsStore, name: str) -> Checked:
    """Check an installed capsule as it lies in the store. Raises CapsulekitError for an unknown one."""
    row = store.get(name)
    wrong: list[str] = []
    sizes: dict[str, int] = {}
    try:
        identities = store.generations(row.name)
    except CapsulekitError as error:
        return Checked(row, 0, 0, (error.message,))
    for identity in identities:
        try:
            _check_signature(store, row, identity)
            digests = store.digests(row.name, identity)
            # Plans are made from this copy, not from the member among the blobs.
            if sha256_bytes(store.read(row.name, manifest.MEMBER, identity)) != digests.get(manifest.MEMBER):
                wrong.append(f"the generation's {manifest.MEMBER} is not what was signed")
        except CapsulekitError as error:
            wrong.append(error.message)
            continue
        for member, sha256 in digests.items():
            if sha256 not in sizes:
                sizes[sha256] = _check_blob(store, member, sha256, wrong)
        wrong += _check_parent(store, row, identity, digests)
        wrong += _check_kept(store, row, identity, digests)
    return Checked(row, len(sizes), sum(sizes.values()), tuple(dict.fromkeys(wrong)))


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


def _check_parent(store: VnfsStore, row: InstalledCapsule, identity: str, digests: dict[str, str]) -> list[str]:
    """What a generation made here has that is neither its author's nor the site's own layer."""
    if not (store.generation(row.name, identity) / ANSWERS).exists():
        return []
    try:
        parent = store.digests(row.name, store.origin(row.name))
    except CapsulekitError as error:
        return [error.message]
    ours = {SITE_LAYER, manifest.MEMBER}
    theirs = {m: s for m, s in digests.items() if m not in ours and not m.startswith("parent/")}
    return [f"{m} is not the author's" for m, s in theirs.items() if parent.get(m) != s]
