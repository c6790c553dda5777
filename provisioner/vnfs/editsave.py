"""Where an edit goes: a new generation of an installed capsule, or a new sealed file in the place of the old one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.manifest import HYBRID, Manifest
from capsulekit.capsule.read import open_capsule
from capsulekit.edit import session
from capsulekit.edit.mounts import real_path
from capsulekit.edit.record import EditRecord
from capsulekit.edit.stack import UPPER
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, remove_parts, sha256_bytes
from capsulekit.sitepaths import SitePaths
from provisioner.vnfs.generation import Generation, new_generation, stored, switch
from provisioner.vnfs.place import placing
from provisioner.vnfs.remove import free_unused

if TYPE_CHECKING:
    from capsulekit.trust.minisign import SecretKey
    from provisioner.vnfs.editpack import Packed
    from provisioner.vnfs.store import VnfsStore


# In a file edit's folder: where the umount that is under way writes to, if not over the file.
OUT = "out"
SMALL = 1 << 20  # bytes: more than sums, signatures and records take
Signer = Callable[[], "SecretKey"]


@dataclass(frozen=True)
class Base:
    """What is edited, as far as packing needs it: its manifest and members (hex sha256), and where their files are.

    ``private``: a layer made of the edit is for nodes alone. ``stored`` is the generation of an installed capsule.
    """

    manifest: Manifest
    digests: Mapping[str, str]
    file_of: Callable[[str, Path], Path]
    private: bool
    stored: Generation | None = None
    store: VnfsStore | None = None

    @property
    def hybrid(self) -> bool:
        """Whether a part of it lies on the network."""
        return HYBRID in self.digests


class Target(Protocol):
    """Where an edit goes."""

    file: str

    def now(self) -> str:
        """The identity that is there now, "" for none."""

    def came_to_be(self, identity: str) -> bool:
        """Whether the edit has become ``identity``; it may have been gone back from since."""

    def base(self) -> Base:
        """What was mounted. Raises CapsulekitError when it is not what is there any more, with the ways out."""

    def save(self, folder: Path, record: EditRecord, packed: Packed, message: str) -> str:
        """Make it what is there; returns its identity. Raises CapsulekitError, and then nothing is changed."""

    def sweep(self) -> None:
        """Take away what a killed command has left."""


def target_of(
    paths: SitePaths, store: VnfsStore | None, record: EditRecord, out: Path | None = None, signer: Signer | None = None
) -> Target:
    """Where the edit of a record goes. Raises CapsulekitError for options that are not for it."""
    if record.file:
        return FileTarget(paths, record, out.absolute() if out is not None else None, signer)
    if out is not None or signer is not None:
        option = "-o" if out is not None else "--key"
        raise CapsulekitError(
            f"{record.name} is installed here: {option} is for capsule files",
            hint="umount it, then: capsulekit vnfs export",
        )
    if store is None:
        raise CapsulekitError(f"{record.name} is an installed capsule, and this site was never initialised")
    return InstalledTarget(store, record)


@dataclass
class InstalledTarget:
    """A new generation, switched to in one transaction of the registry."""

    store: VnfsStore
    record: EditRecord
    file: str = ""

    def now(self) -> str:
        """See Target."""
        row = self.store.registry.capsule(self.record.key)
        return row.identity if row is not None else ""

    def came_to_be(self, identity: str) -> bool:
        """See Target."""
        if not identity:
            return False
        # Another edit of the same base, with the same outcome, may have come before this one: its line does not count.
        edit = self.record
        lines = (one for one in self.store.registry.generations(edit.key) if int(one.time) >= edit.since)
        return self.now() == identity or any((one.identity, one.parent) == (identity, edit.base) for one in lines)

    def base(self) -> Base:
        """See Target."""
        row = self.store.registry.capsule(self.record.key)
        discard = f"discard the edit: capsulekit close {self.record.key}"
        if row is None:
            raise CapsulekitError(f"{self.record.key} was deleted while it was mounted", hint=discard)
        if row.identity != self.record.base:
            raise CapsulekitError(
                f"{row.name} was changed while it was mounted: nodes boot generation {row.identity[:16]}…, and this "
                f"edit is of {self.record.base[:16]}…",
                hint=f"go back to that one, then umount: capsulekit vnfs rollback {row.name} (see vnfs history), or "
                + discard,
            )
        base = stored(self.store, row, row.identity)

        def file_of(member: str, work: Path) -> Path:  # noqa: ARG001 - a blob is a file already
            return self.store.blob(base.digests[member])

        return Base(base.manifest, base.digests, file_of, True, base, self.store)

    def save(self, folder: Path, record: EditRecord, packed: Packed, message: str) -> str:
        """See Target."""
        parts = list(packed.parts.values())
        need = sum(one.source.stat().st_size for one in parts if isinstance(one.source, Path))
        enough_space(self.store.paths.state, need)
        with self.store.lock():
            base = self.base().stored
            assert base is not None
            with placing(self.store, f"umount {record.name}") as placed:
                row = new_generation(self.store, placed, base, packed.manifest, parts, drop=packed.drop)
                session.switching(folder, row.identity)
                switch(
                    self.store, row, base=record.base, kind=packed.kind, message=message, changes=packed.summary
                )  # fmt: skip
        return row.identity

    def sweep(self) -> None:
        """See Target."""
        with self.store.lock():
            free_unused(self.store)


class FileTarget:
    """A new capsule file, in the place of the old one or at ``out``, there only when it is whole."""

    def __init__(self, paths: SitePaths, record: EditRecord, out: Path | None, signer: Signer | None) -> None:
        same = out is not None and real_path(out) == Path(record.file)
        self.paths, self.record, self.out, self.signer = paths, record, None if same else out, signer
        self.file = str(self.out or record.file)
        self._key: SecretKey | None = None

    def now(self) -> str:
        """See Target."""
        with suppress(CapsulekitError), open_capsule(Path(self.file)) as capsule:
            return sha256_bytes(capsule.sums())
        return ""

    def came_to_be(self, identity: str) -> bool:
        """See Target."""
        return bool(identity) and self.now() == identity

    def base(self) -> Base:
        """See Target. Asks for the key first: whoever has none shall not wait for the packing."""
        self._check_out()
        self.key()
        if not os.path.lexists(self.record.file):
            raise CapsulekitError(
                f"{self.record.file} was removed while it was mounted",
                hint=f"put it back, or discard the edit: capsulekit close {self.record.file}",
            )
        with open_capsule(Path(self.record.file)) as capsule:
            sums = capsule.sums()
            if sha256_bytes(sums) != self.record.base:
                raise CapsulekitError(
                    f"{self.record.file} was changed while it was mounted",
                    hint=f"put it back, or discard the edit: capsulekit close {self.record.file}",
                )
            digests = layout.load_sums(sums)
            raw = capsule.read_member(manifest.MEMBER)
            if sha256_bytes(raw) != digests[manifest.MEMBER]:
                raise TrustError(f"{self.record.file}: wrong digest of {manifest.MEMBER}")
        return Base(manifest.loads(raw), digests, self._member, private=self.signer is None)

    def _check_out(self) -> None:
        """Raise CapsulekitError unless a new file can come to be where -o says."""
        if self.out is None:
            return
        if os.path.lexists(self.out):
            raise CapsulekitError(f"{self.out} is there already", hint="choose another name, or remove it first")
        if not self.out.parent.is_dir():
            raise CapsulekitError(f"there is no folder {self.out.parent}", hint="make it, or choose another one")

    def key(self) -> SecretKey:
        """What signs: the author's key that was named, else the site's. Raises CapsulekitError."""
        if self._key is None:
            self._key = self.signer() if self.signer is not None else self._site_key()
        return self._key

    def _site_key(self) -> SecretKey:
        from provisioner.siteconf import NotInitialised, read_site
        from provisioner.sitekey import ensure_site_key

        try:
            read_site(self.paths)
        except NotInitialised:
            raise CapsulekitError(
                "an edited capsule has to be signed, and there is no site here that could",
                hint="name a key: --key PATH",
            ) from None
        return ensure_site_key(self.paths)

    def _member(self, name: str, work: Path) -> Path:
        """A copy of a member in ``work``, checked."""
        path = work / name.replace("/", "-")
        with open_capsule(Path(self.record.file)) as capsule, path.open("wb") as out:
            sha256 = capsule.copy_member(name, out)
            if sha256 != layout.load_sums(capsule.sums()).get(name):
                raise TrustError(f"{self.record.file}: wrong digest of {name}")
        return path

    def save(self, folder: Path, record: EditRecord, packed: Packed, message: str) -> str:  # noqa: ARG002 - no history
        """See Target."""
        from provisioner.vnfs.editfile import write_edited

        (folder / OUT).unlink(missing_ok=True)
        if self.out is not None:
            atomic_write(folder / OUT, os.fsencode(self.out))
        return write_edited(
            Path(record.file), Path(self.file), packed, self.key(), lambda made: session.switching(folder, made)
        )

    def sweep(self) -> None:
        """See Target."""
        remove_parts(Path(self.file))


def enough_space(folder: Path, need: int) -> None:
    """Raise CapsulekitError saying how much is missing when ``need`` bytes do not fit where ``folder`` is."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if need > free:
        raise CapsulekitError(
            f"{(need - free) / 1e6:.1f} MB are missing on the disk of {folder}: {need / 1e6:.1f} MB are needed",
            hint="free some space, then umount again: it is still mounted",
        )


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Where the block finds the disk full in the midst of something small, what is missing at most is said."""
    try:
        yield
    except OSError as wrong:
        if wrong.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = sum(path.lstat().st_size for path in (folder / UPPER).rglob("*") if not path.is_dir())
        found = os.statvfs(folder)
        # A layer as large as what was written, that is then put into the store, and the small files beside it.
        missing = max(2 * written + SMALL - found.f_bavail * found.f_frsize, SMALL)
        raise CapsulekitError(
            f"the disk of {folder} is full: {missing / 1e6:.1f} MB are missing at most",
            hint="free some space, then umount again: it is still mounted",
        ) from wrong


def noted(folder: Path) -> Path | None:
    """Where the umount of a capsule file that was killed had been writing to, if not over the file."""
    try:
        return Path(os.fsdecode((folder / OUT).read_bytes()))
    except FileNotFoundError:
        return None
