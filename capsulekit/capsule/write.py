"""Writing a capsule: members in the format's order, summed, signed, streamed, and there only when complete."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capsulekit.capsule import layout, tar
from capsulekit.capsule.manifest import MEMBER, Manifest
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import CHUNK, atomic_file, remove_parts, sha256_bytes
from capsulekit.trust import minisign
from capsulekit.trust.minisign import PublicKey, SecretKey


@dataclass(frozen=True)
class Member:
    """A member to write: its ``name`` in the capsule and its content, a file or bytes.

    ``known`` are the size (bytes) and hex sha256 of a file that was summed before: then it is read only once, while it
    is written, and must still be that. ``offset`` (bytes) is where it begins in a file that holds more than just it.
    """

    name: str
    source: Path | bytes
    known: tuple[int, str] | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Kept:
    """The signatures of a capsule that is made again: its SHA256SUMS, and its signature members, as they were.

    ``key`` is the one whose signature is checked; co-signatures of other keys are kept too, and only their form counts.
    """

    sums: bytes
    signatures: Mapping[str, bytes]
    key: PublicKey


class Differs(TrustError):
    """What was made again is not what was signed; ``members`` names those that differ, are new or are missing."""

    def __init__(self, members: Sequence[str], what: str = "") -> None:
        super().__init__(f"{what}not what was signed; members that differ: " + ", ".join(members))
        self.members = tuple(members)


def write_capsule(
    out: Path, manifest: Manifest, members: Sequence[Member], signer: SecretKey | Kept, mode: int = 0o644
) -> str:
    """Write and sign a capsule, or give it the signatures it had; returns its identity (hex sha256 of SHA256SUMS).

    ``members`` are all but SHA256SUMS, its signature and capsule.toml, in any order. ``out`` appears, or is replaced,
    only when everything is written. Raises CapsulekitError when a source can't be read or changes meanwhile, the disk
    is full, or the members are not what the manifest says; Differs (or TrustError for a signature that does not hold)
    when they are not what kept signatures were made for.
    """
    content = [*members, Member(MEMBER, manifest.dumps())]
    with _refusing():
        _check_names(manifest, [m.name for m in content])
    summed = _sum_all(content)
    sums = layout.dump_sums({name: digest for name, (_, digest) in summed.items()})
    with _refusing():
        layout.check_sizes({name: size for name, (size, _) in summed.items()}, manifest)
        _check_layers(manifest, summed)
    for name, data in ((layout.SUMS, sums), *_signatures(sums, manifest, signer).items()):
        content.append(Member(name, data))
        summed[name] = (len(data), sha256_bytes(data))
    content.sort(key=lambda m: layout.rank(m.name))
    remove_parts(out)  # of a build that was killed while it wrote; they are as large as a capsule
    with _one_line(out), atomic_file(out, mode) as file:
        written = 0
        for member in content:
            written += _append(file, member, summed[member.name], manifest.epoch)
        file.write(tar.ending(written))
    return summed[layout.SUMS][1]


def digests_of(manifest: Manifest, members: Sequence[Member]) -> dict[str, str]:
    """What SHA256SUMS would list: hex sha256 by member."""
    return {name: digest for name, (_, digest) in _sum_all([*members, Member(MEMBER, manifest.dumps())]).items()}


def _sum_all(members: Sequence[Member]) -> dict[str, tuple[int, str]]:
    return {m.name: m.known or _sum(m) for m in members}


def _signatures(sums: bytes, manifest: Manifest, signer: SecretKey | Kept) -> dict[str, bytes]:
    """Signature members by name: made now, or those that were kept, checked."""
    if isinstance(signer, SecretKey):
        return {layout.SIGNATURE: minisign.sign(sums, signer, manifest.trusted_comment).encode()}
    if sums != signer.sums:
        raise Differs(differing(layout.load_sums(signer.sums), layout.load_sums(sums)))
    text = signer.signatures.get(layout.SIGNATURE, b"").decode("utf-8", "replace")
    if minisign.verify(sums, text, signer.key) != manifest.trusted_comment:
        raise TrustError("the kept signature's trusted comment disagrees with the manifest")
    for name, data in signer.signatures.items():
        if name != layout.SIGNATURE:
            minisign.parse_signature(data.decode("utf-8", "replace"))
            layout.rank(name)
    return dict(signer.signatures)


def differing(one: Mapping[str, str], two: Mapping[str, str]) -> list[str]:
    """The members that are not the same in both listings (name -> hex sha256), in the order of the format."""
    return sorted((n for n in one.keys() | two.keys() if one.get(n) != two.get(n)), key=layout.rank)


@contextmanager
def _one_line(out: Path) -> Iterator[None]:
    """What the disk refuses, in one line. Errors of the sources are told apart in ``_open``."""
    try:
        yield
    except OSError as wrong:
        raise CapsulekitError(f"can't write {out}: {wrong.strerror}", hint="nothing was left behind") from wrong


@contextmanager
def _refusing() -> Iterator[None]:
    """The reader's own rules, so that what is written can be read; broken by us they are no matter of trust."""
    try:
        yield
    except TrustError as wrong:
        raise CapsulekitError(f"this capsule can't be written: {wrong.message}") from wrong


def _check_names(manifest: Manifest, names: Sequence[str]) -> None:
    layout.check_order(sorted(names, key=layout.rank))
    if not all(layout.is_listed(name) for name in names):
        raise TrustError(f"{layout.SUMS} and its signature are made here, not given")
    layout.check_contents(names, manifest)
    if manifest.epoch > tar.MAX_MTIME:
        raise TrustError(f"the build epoch {manifest.epoch} does not fit a tar header")


def _check_layers(manifest: Manifest, summed: dict[str, tuple[int, str]]) -> None:
    for layer in manifest.layers:
        if layer.sha256 != summed[layer.path][1]:
            raise TrustError(f"{layer.path} is not the layer that the manifest describes")


def _sum(member: Member) -> tuple[int, str]:
    """Size (bytes) and hex sha256 of a member's content."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(member):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _append(file: IO[bytes], member: Member, summed: tuple[int, str], mtime: int) -> int:
    """Header, content and padding; returns the bytes written. The content must still be what was summed."""
    size, expected = summed
    head = tar.header(member.name, size, mtime)
    file.write(head)
    digest, done = hashlib.sha256(), 0
    for chunk in _chunks(member):
        done += len(chunk)
        if done > size:
            break
        digest.update(chunk)
        file.write(chunk)
    if done != size or digest.hexdigest() != expected:
        raise CapsulekitError(f"{member.source!s} changed while the capsule was written")
    padding = bytes(-size % tar.BLOCK)
    file.write(padding)
    return len(head) + size + len(padding)


def _chunks(member: Member) -> Iterator[bytes]:
    left = member.known[0] if member.known and member.offset is not None else None
    with _open(member) as source:
        while True:
            try:
                chunk = source.read(CHUNK if left is None else min(CHUNK, left))
            except OSError as wrong:
                raise _unreadable(member, wrong) from wrong
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


def _open(member: Member) -> IO[bytes]:
    if isinstance(member.source, bytes):
        return io.BytesIO(member.source)
    try:
        fd = os.open(member.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CapsulekitError(f"can't put {member.name} into the capsule: {member.source} is not a file")
        source = os.fdopen(fd, "rb")
        source.seek(member.offset or 0)
        return source
    except OSError as wrong:
        raise _unreadable(member, wrong) from wrong


def _unreadable(member: Member, wrong: OSError) -> CapsulekitError:
    return CapsulekitError(f"can't put {member.name} into the capsule: {member.source!s}: {wrong.strerror}")
