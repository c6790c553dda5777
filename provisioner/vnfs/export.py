"""Exporting: the capsule's file again, byte for byte, out of its blobs and signatures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from capsulekit.capsule import layout, manifest, tar
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import CHUNK, atomic_file, remove_parts, sha256_bytes
from provisioner.vnfs.store import VnfsStore


@dataclass(frozen=True)
class Exported:
    """A file that was written: its size in bytes, and whether it holds private layers."""

    path: Path
    identity: str
    size: int
    private: bool


@dataclass(frozen=True)
class _Part:
    """A member: its bytes, or the blob with this digest."""

    name: str
    size: int
    data: bytes | None = None
    blob: Path | None = None
    sha256: str = ""


def export(
    store: VnfsStore,
    name: str,
    out: Path | None,
    *,
    generation: str = "",
    private: bool = True,
    over: bool = False,
    dry_run: bool = False,
) -> Exported:
    """Write the file of an installed capsule; unchanged, it is the very file that was imported.

    ``generation`` is an identity, "" what nodes boot. ``private`` False writes what was imported here, without any of
    this site's own layers. ``out`` may be a folder; None is the current one. Raises CapsulekitError when the capsule
    is unknown or damaged, the file is there and not ``over``, or it can't be written; TrustError when a stored member
    is not what was signed. Nothing is left behind then.
    """
    row = store.get(name)
    identity = (generation or row.identity) if private else store.origin(row.name)
    digests = store.digests(row.name, identity)
    told = manifest.loads(store.small(row.name, manifest.MEMBER, identity) or b"")
    secret = any(layer.private for layer in told.layers)
    if secret and not private:
        raise CapsulekitError(
            f"the private layers of {row.name} were in it when it was imported: they can't be left out"
        )
    path = _place(out, row.name, over=over)
    parts = _parts(store, row.name, identity, digests)
    size = _size(parts, told.epoch)
    if not dry_run:
        remove_parts(path)
        try:
            with atomic_file(path, 0o600 if secret else 0o644) as file:
                _write(file, parts, told.epoch, row.name)
        except OSError as wrong:
            raise CapsulekitError(f"can't write {path}: {wrong.strerror}", hint="nothing was left behind") from wrong
    return Exported(path, identity, size, secret)


def _place(out: Path | None, name: str, *, over: bool) -> Path:
    path = out if out is not None else Path()
    if path.is_dir():
        path = path / f"{name}.vnfs"
    if not path.parent.is_dir():
        raise CapsulekitError(f"there is no folder {path.parent} to write to", hint="make it first")
    if path.is_symlink() or path.exists():
        if not path.is_file():
            raise CapsulekitError(f"{path} is there and is no file")
        if not over:
            raise CapsulekitError(f"{path} is there already", hint="name another file, or write over it: --over")
    return path


def _parts(store: VnfsStore, name: str, identity: str, digests: dict[str, str]) -> list[_Part]:
    """Every member in the order of the format."""
    texts = {layout.SUMS: store.read(name, layout.SUMS, identity), **dict(store.signatures(name, identity))}
    if sha256_bytes(texts[layout.SUMS]) != identity or layout.SIGNATURE not in texts:
        raise TrustError(f"the sums of {name} are not those that were imported", hint="import it again")
    parts = [_Part(text, len(data), data) for text, data in texts.items()]
    for member, sha256 in digests.items():
        blob = store.blob(sha256)
        try:
            parts.append(_Part(member, blob.stat().st_size, None, blob, sha256))
        except OSError as wrong:
            raise CapsulekitError(f"{member} of {name} is gone from the store", hint="import it again") from wrong
    return sorted(parts, key=lambda part: layout.rank(part.name))


def _size(parts: list[_Part], epoch: int) -> int:
    heads = sum(len(tar.header(part.name, part.size, epoch)) + part.size + -part.size % tar.BLOCK for part in parts)
    return heads + len(tar.ending(heads))


def _write(file: IO[bytes], parts: list[_Part], epoch: int, name: str) -> None:
    import hashlib

    for part in parts:
        file.write(tar.header(part.name, part.size, epoch))
        if part.data is not None:
            file.write(part.data)
        elif part.blob is not None:
            digest, done = hashlib.sha256(), 0
            with part.blob.open("rb") as blob:
                while chunk := blob.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    file.write(chunk)
            if digest.hexdigest() != part.sha256 or done != part.size:
                raise TrustError(f"{part.name} of {name} is not what was signed", hint="import it again")
        file.write(bytes(-part.size % tar.BLOCK))
    file.write(tar.ending(file.tell()))
