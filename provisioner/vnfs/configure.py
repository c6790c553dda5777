"""Asking a capsule's questions again: the answers become a new site's layer on what was imported."""

from __future__ import annotations

from dataclasses import dataclass

from capsulekit.errors import CapsulekitError
from provisioner.registry.model import InstalledCapsule
from provisioner.vnfs import questions
from provisioner.vnfs.answers import kept_answers
from provisioner.vnfs.generation import add_site_layer, stored
from provisioner.vnfs.place import placing
from provisioner.vnfs.questions import Questions
from provisioner.vnfs.remove import free_unused
from provisioner.vnfs.store import ANSWERS, Ask, VnfsStore


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

    Nodes that are set to this capsule get it at their next boot. Raises CapsulekitError when it asks nothing, an
    answer is missing or wrong, or the capsule was changed while its questions were asked.
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
            raise CapsulekitError(f"{row.name} was changed by another command meanwhile", hint="try again")
        base = stored(store, now, store.origin(row.name))
        with placing(store, f"configure {row.name}") as placed:
            made = add_site_layer(store, placed, base, asked, answers)
            if made.identity != row.identity:
                store.registry.add_capsule(made)
        free_unused(store)
    return Configured(made, made.identity != row.identity)
