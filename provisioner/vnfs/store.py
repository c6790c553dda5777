"""The store of installed capsules: members as blobs by their digest, signed sums by capsule, the registry's row last.

A capsule is installed when, and only when, the registry has its row. Everything before that is invisible, so a killed
import leaves at most blobs that nothing refers to, which the next import of the same capsule uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.manifest import HYBRID, NAME, Manifest
from capsulekit.capsule.read import CapsuleFile, Verified, open_capsule, verify
from capsulekit.errors import CapsulekitError, TrustError, UsageError
from capsulekit.files import atomic_file, atomic_write, exclusive_lock, fsync_dir, sha256_bytes, sha256_file
from capsulekit.sitepaths import SitePaths
from capsulekit.trust.keyring import Keyring
from provisioner.registry.model import InstalledCapsule

PUBLIC, PRIVATE = 0o644, 0o600
# Files, then folders, in the order in which a failed import takes them away.
Made = list[Path]


class CapsuleRows(Protocol):
    """What the store needs of the registry."""

    def add_capsule(self, capsule: InstalledCapsule) -> None:
        """Record a capsule."""

    def capsule(self, name: str) -> InstalledCapsule | None:
        """The capsule of exactly this name."""

    def capsules(self) -> list[InstalledCapsule]:
        """Every installed capsule, by name."""

    def find_capsule(self, name: str) -> InstalledCapsule:
        """The capsule of this name or unambiguous NAME; raises CapsulekitError."""


@dataclass(frozen=True)
class Imported:
    """What an import came to; ``new`` is False when that very capsule was installed before.

    ``hybrid`` is the size of its hybrid layer in bytes: that layer is stored, and no node gets its files from here yet.
    """

    capsule: InstalledCapsule
    new: bool
    hybrid: int = 0


@dataclass(frozen=True)
class StoredMember:
    """A member of an installed capsule; ``size`` in bytes."""

    name: str
    sha256: str
    size: int
    private: bool


class VnfsStore:
    """The capsules of one site, under ``paths.state``: ``blobs/AA/SHA256`` and ``vnfs/NAME/``."""

    def __init__(self, paths: SitePaths, registry: CapsuleRows) -> None:
        self.paths = paths
        self.registry = registry

    def import_file(self, path: Path, as_name: str | None = None) -> InstalledCapsule:
        """Verify a capsule against the site's keyring and install it; see ``install``."""
        return self.install(path, as_name).capsule

    def install(self, path: Path, as_name: str | None = None, *, dry_run: bool = False) -> Imported:
        """Verify, store the blobs, store the sums, then make it visible; importing it again repairs its files.

        Raises TrustError when it is not signed by a trusted key or does not hold, CapsulekitError when another capsule
        has the name or the disk is full. Nothing of a refused capsule stays behind.
        """
        if as_name is not None and not NAME.fullmatch(as_name):
            raise UsageError(f"a capsule can't be called {as_name!r}", hint="letters, digits and . _ - only")
        keyring = Keyring(self.paths.trust)
        keys = keyring.keys()
        if not keys:
            raise TrustError("this site trusts no author yet", hint="capsulekit trust add FILE.pub")
        with open_capsule(path) as capsule:
            checked = verify(capsule, keys, revoked=keyring.revoked())
            wanted = _row(checked, as_name)
            if dry_run:
                return Imported(wanted, self._known(wanted) is None, _hybrid(checked))
            with exclusive_lock(self.paths.state / "vnfs" / ".lock"):
                return self._install(capsule, checked, wanted)

    def list(self) -> list[InstalledCapsule]:
        """Every installed capsule, by name."""
        return self.registry.capsules()

    def get(self, name: str) -> InstalledCapsule:
        """An installed capsule by its name, or by NAME alone when that is unambiguous. Raises CapsulekitError."""
        return self.registry.find_capsule(name)

    def blob(self, sha256: str) -> Path:
        """Where the member with this digest is, or would be."""
        return self.paths.state / "blobs" / sha256[:2] / sha256

    def folder(self, name: str) -> Path:
        """The folder of the capsule installed under exactly this name: its sums, signature and manifest."""
        return self.paths.state / "vnfs" / name

    def sums(self, name: str) -> Path:
        """Its SHA256SUMS; the signature lies beside it."""
        return self.folder(name) / layout.SUMS

    def manifest(self, name: str) -> Manifest:
        """The manifest of the capsule of exactly this name. Raises TrustError when it is not what was imported."""
        data = self._read(name, manifest.MEMBER)
        if sha256_bytes(data) != self._digests(name).get(manifest.MEMBER):
            raise TrustError(f"the manifest of {name} is not the one that was imported", hint="import it again")
        return manifest.loads(data)

    def members(self, name: str) -> tuple[StoredMember, ...]:
        """Every listed member of an installed capsule, by name. Raises CapsulekitError when one is gone."""
        private = private_members(self.manifest(name))
        found = []
        for member, sha256 in self._digests(name).items():
            try:
                size = self.blob(sha256).stat().st_size
            except OSError as wrong:
                raise CapsulekitError(f"{member} of {name} is gone from the store", hint="import it again") from wrong
            found.append(StoredMember(member, sha256, size, member in private))
        return tuple(found)

    def _digests(self, name: str) -> dict[str, str]:
        data, row = self._read(name, layout.SUMS), self.registry.capsule(name)
        if row is None or sha256_bytes(data) != row.identity:
            raise TrustError(f"the sums of {name} are not those that were imported", hint="import it again")
        return layout.load_sums(data)

    def _read(self, name: str, member: str) -> bytes:
        try:
            return (self.folder(name) / member).read_bytes()
        except OSError as wrong:
            raise CapsulekitError(f"{name} is gone from the store", hint="import it again") from wrong

    def _known(self, wanted: InstalledCapsule) -> InstalledCapsule | None:
        """The row of the same capsule under the same name. Raises CapsulekitError when another one has the name."""
        known = self.registry.capsule(wanted.name)
        if known is not None and known.identity != wanted.identity:
            raise CapsulekitError(
                f"another capsule is installed as {wanted.name} (identity {known.identity[:16]}…)",
                hint="import this one under another name: --as NAME",
            )
        return known

    def _install(self, capsule: CapsuleFile, checked: Verified, wanted: InstalledCapsule) -> Imported:
        known = self._known(wanted)
        made: Made = []
        with _undone(made, wanted.name):
            self._sweep()
            private = private_members(checked.manifest)
            for name in checked.members:
                self._store_blob(capsule, checked, name, PRIVATE if name in private else PUBLIC, made)
            self._store_texts(capsule, wanted.name, made, new=known is None)
            if known is None:
                self.registry.add_capsule(wanted)
        return Imported(known or wanted, known is None, _hybrid(checked))

    def _store_blob(self, capsule: CapsuleFile, checked: Verified, name: str, mode: int, made: Made) -> None:
        """A member under its digest. One that is there and whole is kept; bytes that are public once stay public."""
        member = checked.members[name]
        blob = self.blob(member.sha256)
        if blob.is_file() and sha256_file(blob) == member.sha256:
            if mode == PUBLIC:
                blob.chmod(PUBLIC)
            return
        if not blob.parent.is_dir():
            blob.parent.mkdir(parents=True)
            fsync_dir(blob.parent.parent)
        made.append(blob)
        with atomic_file(blob, mode) as out:
            # Summed again while copied: the file may have been changed since it was verified.
            if capsule.copy_member(name, out) != member.sha256:
                raise TrustError(f"{capsule.path}: {name} changed while it was imported")

    def _store_texts(self, capsule: CapsuleFile, name: str, made: Made, *, new: bool) -> None:
        folder = self.folder(name)
        texts = (layout.SUMS, layout.SIGNATURE, manifest.MEMBER)
        if new:
            made.extend([*(folder / member for member in texts), folder])
        folder.mkdir(parents=True, exist_ok=True)
        for member in texts:
            atomic_write(folder / member, capsule.read_member(member))
        fsync_dir(folder.parent)

    def _sweep(self) -> None:
        """Unfinished files of imports that were killed; we hold the lock, so nobody is writing them."""
        for top in ("blobs", "vnfs"):
            for stale in (self.paths.state / top).glob("*/.*.part"):
                stale.unlink(missing_ok=True)


def private_members(told: Manifest) -> frozenset[str]:
    """Names of the members that only a node with a session may fetch: private layers, and their ACLs with them."""
    layers = [layer for layer in told.layers if layer.private]
    return frozenset([layer.path for layer in layers] + [layer.acl for layer in layers if layer.acl is not None])


def _hybrid(checked: Verified) -> int:
    """Bytes of a capsule's hybrid layer."""
    member = checked.members.get(HYBRID)
    return member.size if member else 0


def _row(checked: Verified, as_name: str | None) -> InstalledCapsule:
    told = checked.manifest
    row = InstalledCapsule(
        name=told.full_name,
        identity=checked.identity,
        key_id=checked.key.id,
        public_key=checked.key.text,
        version=told.version,
        arch=told.arch,
        imported=time.time(),
        private=any(layer.private for layer in told.layers),
    )
    return replace(row, name=as_name) if as_name else row


@contextmanager
def _undone(made: Made, name: str) -> Iterator[None]:
    """Take away what was made when the block fails: files first, then the folder they were in."""
    try:
        yield
    except BaseException as wrong:
        for path in made:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if isinstance(wrong, OSError):
            raise CapsulekitError(f"can't import {name}: {wrong.strerror}: {wrong.filename or 'the store'}") from wrong
        raise
