"""Importing a capsule: verified before anything else, then its blobs, its texts, and its row last of all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from capsulekit.capsule import layout, manifest
from capsulekit.capsule.manifest import HYBRID, NAME
from capsulekit.capsule.read import CapsuleFile, Verified, open_capsule, verify
from capsulekit.errors import TrustError, UsageError
from provisioner.registry.model import InstalledCapsule, Past
from provisioner.sitekey import trusted_here
from provisioner.vnfs import questions
from provisioner.vnfs.place import PRIVATE, PUBLIC, Placing, placing
from provisioner.vnfs.questions import Answers, Questions
from provisioner.vnfs.store import SITE_LAYER, Ask, Imported, VnfsStore, private_members


def install(
    store: VnfsStore, path: Path, as_name: str | None, *, ask: Ask | None = None, dry_run: bool = False
) -> Imported:
    """Verify, ask what it asks, store the blobs and sums, then make it visible; a second time repairs its files.

    Without ``ask`` its questions get their defaults. Raises TrustError when it is not signed by a trusted key or does
    not hold, CapsulekitError when another capsule has the name, an answer is missing or the disk is full. Nothing of a
    refused capsule stays behind.
    """
    check_name(as_name)
    keys, revoked = trusted_here(store.paths)
    if not keys:
        raise TrustError("this site trusts no author yet", hint="capsulekit trust add FILE.pub")
    with open_capsule(path) as capsule:
        checked = verify(capsule, keys, revoked=revoked)
        wanted = _row(checked, as_name)
        known = store._known(wanted)
        # One that was configured where it was exported is taken as it is.
        configured = any(layer.path == SITE_LAYER for layer in checked.manifest.layers)
        answers = None if known or configured else _answers(capsule, ask)
        if dry_run:
            return Imported(known or wanted, known is None, _hybrid(checked))
        with store.lock():
            return _install(store, capsule, checked, wanted, answers)


def check_name(name: str | None) -> None:
    """Raise UsageError for a name that no capsule can be installed under."""
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"a capsule can't be called {name[:120]!r}", hint="letters, digits and . _ - only")


def _answers(capsule: CapsuleFile, ask: Ask | None) -> tuple[Questions, Answers] | None:
    """The capsule's questions and their settled answers, None when it asks nothing."""
    if questions.MEMBER not in capsule.members:
        return None
    asked = questions.loads(capsule.read_member(questions.MEMBER, questions.MAX_SIZE))
    defaults = {q.key: q.default for q in asked.all}
    return asked, asked.settled(ask(asked, defaults) if ask else defaults)


def _install(
    store: VnfsStore,
    capsule: CapsuleFile,
    checked: Verified,
    wanted: InstalledCapsule,
    answers: tuple[Questions, Answers] | None,
) -> Imported:
    known = store._known(wanted)
    with placing(store, f"import {wanted.name}") as placed:
        private = private_members(checked.manifest)
        for name in checked.members:
            _store_member(placed, capsule, checked, name, PRIVATE if name in private else PUBLIC)
        texts = _texts(capsule)
        placed.generation(wanted.name, wanted.identity, texts, secret=frozenset())
        row = known or wanted
        if known is None:
            if answers is not None:
                from provisioner.vnfs.configure import configured
                from provisioner.vnfs.generation import as_imported

                row = configured(store, placed, as_imported(wanted, checked, texts), *answers)
            history = [Past(wanted.identity, "import")]
            if row.identity != wanted.identity:
                history.append(Past(row.identity, "configure", wanted.identity))
            store.registry.install_capsule(row, history)
    return Imported(row, known is None, _hybrid(checked))


def _store_member(placed: Placing, capsule: CapsuleFile, checked: Verified, name: str, mode: int) -> None:
    # Summed again while copied: the file may have been changed since it was verified.
    what = f"{capsule.path}: {name}"
    placed.blob(checked.members[name].sha256, mode, lambda out: capsule.copy_member(name, out), what)


def _texts(capsule: CapsuleFile) -> Mapping[str, bytes]:
    """What a generation's folder holds: all that SHA256SUMS does not list, and the manifest."""
    signatures = [name for name in capsule.members if layout.is_signature(name)]
    return {name: capsule.read_member(name) for name in (layout.SUMS, *signatures, manifest.MEMBER)}


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
