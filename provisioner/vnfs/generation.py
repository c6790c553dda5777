"""Generations made at this site: a capsule with the site's own layer on top, signed by the site's key.

The sums of what was imported go with it as ``parent/0``, so that everybody can see which layers are its author's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.manifest import Layer, Manifest
from capsulekit.capsule.read import Verified
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import sha256_bytes, sha256_file
from capsulekit.trust import minisign
from capsulekit.trust.minisign import PublicKey
from provisioner.registry.model import InstalledCapsule
from provisioner.sitekey import ensure_site_key, trusted_here
from provisioner.vnfs import sitelayer
from provisioner.vnfs.answers import dump_answers
from provisioner.vnfs.place import PRIVATE, PUBLIC, Placing
from provisioner.vnfs.questions import Answers, Questions, SiteFile
from provisioner.vnfs.store import ANSWERS, SITE_LAYER, VnfsStore


@dataclass(frozen=True)
class Generation:
    """A stored generation of a capsule: its row, manifest, listed members (hex sha256) and signed texts."""

    row: InstalledCapsule
    manifest: Manifest
    digests: Mapping[str, str]
    texts: Mapping[str, bytes]


def as_imported(row: InstalledCapsule, checked: Verified, texts: Mapping[str, bytes]) -> Generation:
    """What an import has just stored."""
    return Generation(row, checked.manifest, {name: m.sha256 for name, m in checked.members.items()}, texts)


def stored(store: VnfsStore, row: InstalledCapsule, identity: str) -> Generation:
    """A generation that is in the store, its row as if it were what nodes boot.

    Raises CapsulekitError when a part of it is gone or changed, TrustError when its author is not trusted any more.
    """
    digests = store.digests(row.name, identity)
    data = store.read(row.name, manifest.MEMBER, identity)
    if sha256_bytes(data) != digests.get(manifest.MEMBER):
        raise TrustError(f"the manifest of {row.name} is not the one that was imported", hint="import it again")
    texts = {layout.SUMS: store.read(row.name, layout.SUMS, identity), **dict(store.signatures(row.name, identity))}
    told = manifest.loads(data)
    if identity != row.identity:
        key = _author(store, told, texts)
        row = replace(row, identity=identity, key_id=key.id, public_key=key.text)
    return Generation(replace(row, private=any(one.private for one in told.layers)), told, digests, texts)


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


def add_site_layer(
    store: VnfsStore, placed: Placing, base: Generation, questions: Questions, answers: Answers
) -> InstalledCapsule:
    """Put the answers' files on top of ``base``, which is as it was imported; returns the row of what nodes boot.

    That is ``base`` itself when the answers make no file. Nothing is visible before the caller records the row.
    Raises CapsulekitError when a file can't go where it should.
    """
    files = questions.files(answers)
    if not files:
        return base.row
    with tempfile.TemporaryDirectory(prefix=".layer-", dir=store.home(base.row.name)) as work:
        image = Path(work) / "site.squashfs"
        layer = _make_layer(store, base, files, image)
        _place_bytes(placed, image.read_bytes(), PRIVATE, SITE_LAYER)  # kilobytes: answers are short
    told = replace(base.manifest, layers=(layer, *base.manifest.layers))
    small = {f"parent/0/{name}": data for name, data in base.texts.items() if name != manifest.MEMBER}
    small[manifest.MEMBER] = told.dumps()
    kept = {name: sha256 for name, sha256 in base.digests.items() if not name.startswith("parent/")}
    digests = {**kept, **_parents(base), layer.path: layer.sha256}
    digests |= {name: _place_bytes(placed, data, PUBLIC, name) for name, data in small.items()}
    layout.check_contents(digests, told)
    return _sign(store, placed, base.row, told, digests, answers)


def _sign(
    store: VnfsStore,
    placed: Placing,
    row: InstalledCapsule,
    told: Manifest,
    digests: Mapping[str, str],
    answers: Answers,
) -> InstalledCapsule:
    """Sums, the site's signature, and the answers beside them."""
    key = ensure_site_key(store.paths)
    sums = layout.dump_sums(digests)
    texts = {
        layout.SUMS: sums,
        layout.SIGNATURE: minisign.sign(sums, key, told.trusted_comment).encode(),
        manifest.MEMBER: told.dumps(),
        ANSWERS: dump_answers(answers),
    }
    identity = sha256_bytes(sums)
    placed.generation(row.name, identity, texts, secret=frozenset([ANSWERS]))
    return replace(row, identity=identity, key_id=key.public.id, public_key=key.public.text, private=True)


def _make_layer(store: VnfsStore, base: Generation, files: list[SiteFile], image: Path) -> Layer:
    told = base.manifest
    if any(layer.path == SITE_LAYER for layer in told.layers):
        raise CapsulekitError(
            f"{base.row.name} has a site's layer already: it was configured where it was exported",
            hint="export it there with --without-private, and import that",
        )
    root = sitelayer.seen_root([store.blob(base.digests[layer.path]) for layer in told.layers])
    unpacked = sitelayer.write_layer(image, root, sitelayer.place(root, files), told.epoch)
    return Layer(SITE_LAYER, image.stat().st_size, sha256_file(image), unpacked, private=True)


def _place_bytes(placed: Placing, data: bytes, mode: int, what: str) -> str:
    """Put a small member into the store; returns its hex sha256."""

    def write(out: IO[bytes]) -> str:
        out.write(data)
        return sha256

    sha256 = sha256_bytes(data)
    placed.blob(sha256, mode, write, what)
    return sha256


def _parents(base: Generation) -> dict[str, str]:
    """What ``base`` itself was made from, one generation older than it says (hex sha256 by member)."""
    found = {}
    for name, sha256 in base.digests.items():
        if name.startswith("parent/"):
            _, number, file = name.split("/")
            found[f"parent/{int(number) + 1}/{file}"] = sha256
    return found
