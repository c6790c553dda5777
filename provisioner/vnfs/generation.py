"""Generations made at this site: what a capsule is, changed in some members, and signed by the site's key.

The sums of what was changed go with it as ``parent/0``, those of what was imported after them, so that everybody can
see which layers are the author's. Never more of them, however many generations there were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.manifest import Manifest
from capsulekit.capsule.read import Verified
from capsulekit.errors import TrustError
from capsulekit.files import CHUNK, sha256_bytes, sha256_file
from capsulekit.trust import minisign
from capsulekit.trust.minisign import PublicKey
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.sitekey import ensure_site_key, trusted_here
from provisioner.vnfs.answers import dump_answers
from provisioner.vnfs.place import PRIVATE, PUBLIC, Placing
from provisioner.vnfs.questions import Answers
from provisioner.vnfs.store import ANSWERS, VnfsStore

# The answers beside the base are those of the new generation too.
KEEP: Final = "keep"


@dataclass(frozen=True)
class Generation:
    """A stored generation of a capsule: its row, manifest, listed members (hex sha256) and signed texts."""

    row: InstalledCapsule
    manifest: Manifest
    digests: Mapping[str, str]
    texts: Mapping[str, bytes]


@dataclass(frozen=True)
class Part:
    """A member that a new generation has and its base has not, or has otherwise; ``private``: for nodes alone."""

    name: str
    source: Path | bytes
    private: bool = False


def as_imported(row: InstalledCapsule, checked: Verified, texts: Mapping[str, bytes]) -> Generation:
    """What an import has just stored."""
    return Generation(row, checked.manifest, {name: m.sha256 for name, m in checked.members.items()}, texts)


def stored(store: VnfsStore, row: InstalledCapsule, identity: str) -> Generation:
    """A generation that is in the store, its row as if it were what nodes boot.

    Raises CapsulekitError when a part of it is gone or changed, TrustError when its author is not trusted any more.
    """
    digests = store.digests(row.name, identity)
    told = store.manifest(row.name, identity)
    texts = {layout.SUMS: store.read(row.name, layout.SUMS, identity), **dict(store.signatures(row.name, identity))}
    if identity != row.identity:
        key = _author(store, told, texts)
        row = replace(row, identity=identity, key_id=key.id, public_key=key.text)
    return Generation(replace(row, private=any(one.private for one in told.layers)), told, digests, texts)


def new_generation(
    store: VnfsStore,
    placed: Placing,
    base: Generation,
    told: Manifest,
    parts: Sequence[Part],
    *,
    drop: Sequence[str] = (),
    answers: Answers | str | None = KEEP,
) -> InstalledCapsule:
    """Store what ``base`` becomes with ``parts`` in it and ``drop`` out of it; returns its row, for ``switch``.

    ``told`` is its manifest: layers and scripts that it does not name any more go out by themselves. ``answers`` are
    the questions' answers that it was made with: those beside ``base``, none, or others. The site's key signs it.
    Nothing is visible before ``switch``; the store's lock is held. Raises TrustError when members and manifest
    disagree, CapsulekitError when a part can't be stored.
    """
    named = {layer.path for layer in told.layers} | {layer.acl for layer in told.layers} | {*told.provision}
    kept = {
        name: sha256
        for name, sha256 in base.digests.items()
        if name not in drop and (name in named or not _only_if_named(name))
    }
    kept |= {part.name: _place(placed, part) for part in parts}
    for name, data in _parents(store, base).items():
        kept[name] = _place(placed, Part(name, data))
    kept[manifest.MEMBER] = _place(placed, Part(manifest.MEMBER, told.dumps()))
    layout.check_contents(kept, told)
    beside = store.generation(base.row.name, base.row.identity) / ANSWERS
    if answers == KEEP:
        secret = beside.read_bytes() if beside.exists() else None
    else:
        secret = None if answers is None else dump_answers(answers)  # type: ignore[arg-type]
    return _sign(store, placed, base.row, told, kept, secret)


def switch(
    store: VnfsStore,
    row: InstalledCapsule,
    *,
    base: str,
    kind: str,
    message: str = "",
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Let nodes boot ``row``'s generation from their next boot on, and write it down: one transaction.

    ``kind`` and ``changes`` are as in registry.model.Past. Raises CapsulekitError when ``base`` (an identity) is not
    what nodes boot any more: somebody else was quicker, and nothing is changed.
    """
    past = Past(row.identity, kind, base, message, changes or {})
    store.registry.switch_capsule(row, past, base=base, first=store.unwritten(replace(row, identity=base)))


def _only_if_named(name: str) -> bool:
    """Members that are there because the manifest says so; and what base was made from."""
    return name.startswith(("parent/", "provision/")) or (name.startswith("layers/") and name != manifest.HYBRID)


def _parents(store: VnfsStore, base: Generation) -> dict[str, bytes]:
    """parent/0: what is changed; parent/1: what was imported, if that is another one; then what that was made from."""
    chain = [_signed(base.texts)]
    origin, digests = store.origin_of(base.row), base.digests
    if origin != base.row.identity:
        texts = {layout.SUMS: store.read(base.row.name, layout.SUMS, origin)}
        chain.append(_signed({**texts, **dict(store.signatures(base.row.name, origin))}))
        digests = store.digests(base.row.name, origin)
    found = {f"parent/{number}/{file}": data for number, texts in enumerate(chain) for file, data in texts.items()}
    for name in digests:
        if name.startswith("parent/"):
            _, number, file = name.split("/")
            data = store.blob(digests[name]).read_bytes()
            found[f"parent/{int(number) + len(chain)}/{file}"] = data
    return found


def _signed(texts: Mapping[str, bytes]) -> dict[str, bytes]:
    return {file: data for file, data in texts.items() if file == layout.SUMS or layout.is_signature(file)}


def _place(placed: Placing, part: Part) -> str:
    """Put a part into the store; returns its hex sha256."""
    source = part.source
    sha256 = sha256_bytes(source) if isinstance(source, bytes) else sha256_file(source)

    def write(out: IO[bytes]) -> str:
        if isinstance(source, bytes):
            out.write(source)
            return sha256
        digest = hashlib.sha256()
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
        return digest.hexdigest()

    placed.blob(sha256, PRIVATE if part.private else PUBLIC, write, part.name)
    return sha256


def _sign(
    store: VnfsStore,
    placed: Placing,
    row: InstalledCapsule,
    told: Manifest,
    digests: Mapping[str, str],
    answers: bytes | None,
) -> InstalledCapsule:
    """Sums, the site's signature, and the answers beside them."""
    key = ensure_site_key(store.paths)
    sums = layout.dump_sums(digests)
    texts = {
        layout.SUMS: sums,
        layout.SIGNATURE: minisign.sign(sums, key, told.trusted_comment).encode(),
        manifest.MEMBER: told.dumps(),
    }
    if answers is not None:
        texts[ANSWERS] = answers
    identity = sha256_bytes(sums)
    placed.generation(row.name, identity, texts, secret=frozenset([ANSWERS]))
    private = any(layer.private for layer in told.layers)
    return replace(row, identity=identity, key_id=key.public.id, public_key=key.public.text, private=private)


def _author(store: VnfsStore, told: Manifest, texts: Mapping[str, bytes]) -> PublicKey:
    """Who signed; raises TrustError when this site does not trust that key (any more)."""
    text = texts.get(layout.SIGNATURE, b"").decode("utf-8", "replace")
    keys, _ = trusted_here(store.paths)
    wanted = minisign.parse_signature(text)
    for key in keys:
        if key.key_id == wanted.key_id:
            if minisign.verify(texts[layout.SUMS], text, key) != told.trusted_comment:
                raise TrustError("the signature's trusted comment disagrees with the manifest")
            return key
    raise TrustError(
        f"{told.full_name} is signed by key {wanted.id}, which is not trusted here (any more)",
        hint="if you know its author: capsulekit trust add FILE.pub",
    )
