"""Asking a capsule's questions again: the answers become the site's layer, on top of all that was edited meanwhile."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from capsulekit.capsule import manifest
from capsulekit.capsule.manifest import Layer
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from provisioner.registry.generations import changed_meanwhile
from provisioner.registry.model import InstalledCapsule
from provisioner.vnfs import questions, sitelayer
from provisioner.vnfs.answers import kept_answers
from provisioner.vnfs.generation import Generation, Part, new_generation, stored, switch
from provisioner.vnfs.place import Placing, placing
from provisioner.vnfs.questions import Answers, Questions, SiteFile
from provisioner.vnfs.remove import free_unused
from provisioner.vnfs.store import ANSWERS, SITE_ACL, SITE_LAYER, Ask, VnfsStore


@dataclass(frozen=True)
class Configured:
    """A capsule after its questions; ``changed`` is False when the answers make what was there already."""

    capsule: InstalledCapsule
    changed: bool


def questions_of(store: VnfsStore, name: str) -> Questions:
    """What an installed capsule asks. Raises CapsulekitError when it asks nothing."""
    data = store.small(name, questions.MEMBER)
    asked = questions.loads(data) if data else questions.NONE
    if not asked.all:
        raise CapsulekitError(f"{name} asks nothing: there is nothing to configure")
    return asked


def configure(store: VnfsStore, name: str, ask: Ask, *, dry_run: bool = False) -> Configured:
    """Ask again, with the last answers as defaults, and make the generation that follows from them.

    Nodes that are set to this capsule get it at their next boot; what was edited stays. Raises CapsulekitError when it
    asks nothing, an answer is missing or wrong, or the capsule was changed while its questions were asked.
    """
    row = store.get(name)
    asked = questions_of(store, row.name)
    defaults = {q.key: q.default for q in asked.all}
    last = kept_answers(store.folder(row.name) / ANSWERS)
    answers = asked.settled(ask(asked, {**defaults, **{k: v for k, v in last.items() if k in defaults}}))
    if dry_run:
        return Configured(row, answers != last)
    with store.lock():
        now = store.get(row.name)
        if now.identity != row.identity:
            raise changed_meanwhile(row.name, store.history(row.name)[-1])
        base = _without_answers(store, stored(store, now, now.identity))
        with placing(store, f"configure {row.name}") as placed:
            made = configured(store, placed, base, asked, answers)
            if made.identity != row.identity:
                switch(store, made, base=row.identity, kind="configure")
        free_unused(store)
    return Configured(made, made.identity != row.identity)


def configured(
    store: VnfsStore, placed: Placing, base: Generation, questions: Questions, answers: Answers
) -> InstalledCapsule:
    """Put the answers' files on top of ``base``, in place of its old site layer; returns the row of what nodes boot.

    That is ``base`` itself when it has no such layer and the answers make no file. Nothing is visible before the caller
    records the row. Raises CapsulekitError when a file can't go where it should.
    """
    files = questions.files(answers)
    if any(layer.path == SITE_LAYER for layer in base.manifest.layers) and not _is_ours(store, base):
        raise CapsulekitError(
            f"{base.row.name} has a site's layer already: it was configured where it was exported",
            hint="export it there with --without-private, and import that",
        )
    below = tuple(layer for layer in base.manifest.layers if layer.path != SITE_LAYER)
    if not files and below == base.manifest.layers:
        return base.row
    if not files:
        return new_generation(store, placed, base, replace(base.manifest, layers=below), [], answers=answers)
    with tempfile.TemporaryDirectory(prefix=".layer-", dir=store.home(base.row.name)) as work:
        parts, layer = _make_layer(store, base, below, files, Path(work) / "site.squashfs")
        told = replace(base.manifest, layers=(layer, *below))
        beside = kept_answers(store.generation(base.row.name, base.row.identity) / ANSWERS)
        if told == base.manifest and beside == answers:
            return base.row
        return new_generation(store, placed, base, told, parts, answers=answers)


def _make_layer(
    store: VnfsStore, base: Generation, below: tuple[Layer, ...], files: list[SiteFile], image: Path
) -> tuple[list[Part], Layer]:
    """The layer's members, and its line in the manifest."""
    root = sitelayer.seen_root([store.blob(base.digests[layer.path]) for layer in below])
    placed = sitelayer.place(root, files)
    unpacked = sitelayer.write_layer(image, root, placed, base.manifest.epoch)
    lists = [store.blob(base.digests[layer.acl]).read_bytes() for layer in below if layer.acl is not None]
    acl = sitelayer.acl_list(lists, placed)
    parts = [Part(SITE_LAYER, image, private=True)] + [Part(SITE_ACL, acl, private=True)] * bool(acl)
    where = SITE_ACL if acl else None
    return parts, Layer(SITE_LAYER, image.stat().st_size, sha256_file(image), unpacked, private=True, acl=where)


def _without_answers(store: VnfsStore, now: Generation) -> Generation:
    """What the new answers go on: the capsule as it was imported where only answers were put on it since.

    So the same answers make the same generation, whatever the ones before were. Else it is what nodes boot now.
    """
    origin = store.origin(now.row.name)
    if origin == now.row.identity:
        return now
    ours = {SITE_LAYER, SITE_ACL, manifest.MEMBER}

    def others(digests: dict[str, str]) -> dict[str, str]:
        return {m: s for m, s in digests.items() if m not in ours and not m.startswith("parent/")}

    first = store.digests(now.row.name, origin)
    same = SITE_LAYER not in first and others(first) == others(dict(now.digests))
    # Layers in another order, or with other marks, are another stack of the same members.
    told = store.manifest(now.row.name, origin)
    below = tuple(layer for layer in now.manifest.layers if layer.path != SITE_LAYER)
    same = same and replace(now.manifest, layers=below) == told
    return stored(store, now.row, origin) if same else now


def _is_ours(store: VnfsStore, base: Generation) -> bool:
    """Whether the site layer of a generation was made here: what was imported had none."""
    return SITE_LAYER not in store.digests(base.row.name, store.origin_of(base.row))
