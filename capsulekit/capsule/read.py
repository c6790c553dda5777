"""Reading a capsule that anyone may have made: nothing in it counts until the signature and the digests hold."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from capsulekit.capsule import layout, manifest, tar
from capsulekit.capsule.manifest import Manifest
from capsulekit.capsule.tar import Entry
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import CHUNK, sha256_bytes
from capsulekit.trust import minisign
from capsulekit.trust.minisign import PublicKey, Signature


@dataclass(frozen=True)
class VerifiedMember:
    """A member whose digest holds: where its data is in the file (bytes), and its hex sha256."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Verified:
    """A capsule that is what ``key`` signed. ``identity`` is the hex sha256 of SHA256SUMS.

    ``members`` holds every listed member by name, in the order of the file; not SHA256SUMS and its signatures.
    """

    manifest: Manifest
    identity: str
    key: PublicKey
    members: dict[str, VerifiedMember]


class UntrustedKey(TrustError):
    """Signed by a key that is not trusted here; ``key_id`` as minisign prints it."""

    def __init__(self, message: str, key_id: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key_id = key_id


class Unsigned(TrustError):
    """There is no signature in the file at all."""


class CapsuleFile:
    """An open capsule: ``members`` by name in the order of the file. Names are safe, contents are not yet trusted."""

    def __init__(self, path: Path, fd: int, mtime: int, entries: Iterable[Entry]) -> None:
        self.path = path
        self.mtime = mtime  # epoch seconds, the same in every header
        self.members = {entry.name: entry for entry in entries}
        self._fd = fd

    def __enter__(self) -> CapsuleFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_member(self, name: str, limit: int = manifest.MAX_SIZE) -> bytes:
        """A small member, whole. Raises TrustError when it is missing or has more than ``limit`` bytes."""
        entry = self._entry(name)
        if entry.size > limit:
            raise TrustError(f"{name} has {entry.size} bytes; at most {limit} are expected")
        return b"".join(self.chunks(name))

    def copy_member(self, name: str, out: IO[bytes]) -> str:
        """Stream a member into ``out``; returns the hex sha256 of what was written, for the caller to compare."""
        digest = hashlib.sha256()
        for chunk in self.chunks(name):
            digest.update(chunk)
            out.write(chunk)
        return digest.hexdigest()

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's data in pieces. Raises TrustError when the file ends too soon."""
        entry = self._entry(name)
        done = 0
        while done < entry.size:
            chunk = os.pread(self._fd, min(CHUNK, entry.size - done), entry.offset + done)
            if not chunk:
                raise TrustError(f"truncated: {name} ends too soon")
            done += len(chunk)
            yield chunk

    def signature(self) -> Signature:
        """The author's signature, taken apart, not checked. Raises TrustError; an unsigned file is one."""
        if layout.SIGNATURE not in self.members:
            raise Unsigned("the file is not signed")
        return minisign.parse_signature(self.signature_text())

    def signature_text(self) -> str:
        """The signature file as it is."""
        return self.read_member(layout.SIGNATURE, layout.MAX_SIGNATURE).decode("utf-8", "replace")

    def sums(self) -> bytes:
        """SHA256SUMS as it is: what is signed, and whose sha256 is the identity."""
        return self.read_member(layout.SUMS, layout.MAX_SUMS)

    def _entry(self, name: str) -> Entry:
        entry = self.members.get(name)
        if entry is None:
            raise TrustError(f"missing member {name}")
        return entry


def open_capsule(path: Path) -> CapsuleFile:
    """Open a capsule and check its tar: known names once each, in order, plain files, nothing beside them.

    Use it in a ``with`` block. Raises CapsulekitError when the file can't be read, TrustError when it is malformed.
    """
    try:
        # Not blocking: a fifo in the file's place must not hang us.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as wrong:
        raise CapsulekitError(f"can't open {path}: {wrong.strerror}") from wrong
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise CapsulekitError(f"{path} is not a file")
        with naming(path):
            mtime, entries = tar.scan(fd, info.st_size, layout.MAX_MEMBERS)
            layout.check_order([entry.name for entry in entries])
    except BaseException:
        os.close(fd)
        raise
    return CapsuleFile(path, fd, mtime, entries)


def verify(capsule: CapsuleFile, keys: Iterable[PublicKey], *, revoked: Collection[PublicKey] = ()) -> Verified:
    """Check everything: signature by one of ``keys``, every member's digest, and that the manifest agrees.

    Raises UntrustedKey when another key signed, TrustError naming the cause otherwise; reads the file once, in pieces.
    """
    with naming(capsule.path):
        return _verify(capsule, keys, revoked)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Every refusal inside the block gets the file's name before it."""
    try:
        yield
    except UntrustedKey as wrong:
        raise UntrustedKey(f"{path}: {wrong.message}", wrong.key_id, hint=wrong.hint) from wrong
    except TrustError as wrong:
        raise type(wrong)(f"{path}: {wrong.message}", hint=wrong.hint) from wrong
    except OSError as wrong:
        raise CapsulekitError(f"can't read {path}: {wrong.strerror}") from wrong


def _verify(capsule: CapsuleFile, keys: Iterable[PublicKey], revoked: Collection[PublicKey]) -> Verified:
    sums, signature = capsule.sums(), capsule.signature()
    key = _signer(signature, keys, revoked)
    comment = minisign.verify(sums, capsule.signature_text(), key)
    digests = layout.load_sums(sums)
    _check_listing(capsule, digests)
    # The manifest is small and says what to expect of the rest, so it goes first.
    raw = capsule.read_member(manifest.MEMBER)
    if sha256_bytes(raw) != digests[manifest.MEMBER]:
        raise TrustError(f"wrong digest of {manifest.MEMBER}")
    told = manifest.loads(raw)
    if comment != told.trusted_comment:
        raise TrustError("the signature's trusted comment disagrees with the manifest")
    if capsule.mtime != told.epoch:
        raise TrustError("the members' time disagrees with the epoch in the manifest")
    sizes = {name: entry.size for name, entry in capsule.members.items()}
    layout.check_contents(digests, told)
    layout.check_sizes(sizes, told)
    for layer in told.layers:
        if layer.sha256 != digests[layer.path]:
            raise TrustError(f"the digest of {layer.path} in the manifest disagrees with {layout.SUMS}")
    return Verified(told, sha256_bytes(sums), key, _check_digests(capsule, digests))


def _signer(signature: Signature, keys: Iterable[PublicKey], revoked: Collection[PublicKey]) -> PublicKey:
    if any(signature.key_id == key.key_id for key in revoked):
        raise UntrustedKey(f"signed by key {signature.id}, which was revoked here", signature.id)
    for key in keys:
        if key.key_id == signature.key_id:
            return key
    hint = "if you know its author: capsulekit trust add FILE.pub"
    raise UntrustedKey(f"signed by key {signature.id}, which is not trusted here", signature.id, hint=hint)


def _check_listing(capsule: CapsuleFile, digests: dict[str, str]) -> None:
    """SHA256SUMS lists just what is in the file; of co-signatures, which it does not list, only the form is checked."""
    present = {name for name in capsule.members if layout.is_listed(name)}
    extra, missing = sorted(present - set(digests)), sorted(set(digests) - present)
    if extra:
        raise TrustError(f"extra member {extra[0]}: {layout.SUMS} does not list it")
    if missing:
        raise TrustError(f"missing member {missing[0]}: {layout.SUMS} lists it")
    for name in capsule.members:
        cosigner = layout.cosigner(name)
        if cosigner is not None:
            text = capsule.read_member(name, layout.MAX_SIGNATURE).decode("utf-8", "replace")
            if minisign.parse_signature(text).id != cosigner:
                raise TrustError(f"{name} is signed by another key than its name says")
    if manifest.MEMBER not in digests:
        raise TrustError(f"missing member {manifest.MEMBER}")


def _check_digests(capsule: CapsuleFile, digests: dict[str, str]) -> dict[str, VerifiedMember]:
    members: dict[str, VerifiedMember] = {}
    for name, entry in capsule.members.items():
        if not layout.is_listed(name):
            continue
        digest = hashlib.sha256()
        for chunk in capsule.chunks(name):
            digest.update(chunk)
        if digest.hexdigest() != digests[name]:
            raise TrustError(f"wrong digest of {name}")
        members[name] = VerifiedMember(entry.offset, entry.size, digests[name])
    return members
