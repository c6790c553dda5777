"""Locks as files: made from a recipe, updated, explained, or taken out of a capsule that was just built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.cache import Cache
from capsulekit.capsule.read import open_capsule
from capsulekit.distro.base import distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.lock.model import SETS, Lock, Package, load
from capsulekit.recipe.load import load_recipe

EVERYTHING = "*"


@dataclass(frozen=True)
class LockOptions:
    """What `capsulekit lock` was asked for; ``update`` is a package's name, EVERYTHING, or None for a first lock."""

    recipe: Path
    out: Path
    cache: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    update: str | None = None
    dry_run: bool = False


def lock_beside(recipe: Path) -> Path:
    """Where a recipe's lock is when nobody says: RECIPE with .lock. Raises CapsulekitError for what names no file."""
    if not recipe.name:
        raise CapsulekitError(f"{recipe} is a folder, not a recipe")
    return recipe.with_suffix(".lock")


def write_lock(options: LockOptions) -> tuple[Lock | None, Lock]:
    """Choose the recipe's packages and write the lock; the lock that was there (or None) and the new one.

    Updating one package keeps every other at its version. Raises CapsulekitError; the old lock stays then.
    """
    from capsulekit.build import request_of

    out = options.out
    recipe = load_recipe(options.recipe, options.variables)
    if not out.parent.is_dir():
        raise CapsulekitError(f"there is no folder {out.parent} to write the lock to", hint="make it first")
    if out.is_dir():
        raise CapsulekitError(
            f"{out} is a folder", hint=f"name the lock's file, such as {out}/{options.recipe.stem}.lock"
        )
    before = load(out) if out.exists() and options.update is not None else None
    keep: Sequence[Package] = ()
    if options.update not in (None, EVERYTHING):
        keep = _all_but(str(options.update), before, out)
    maker = distro(recipe.distro, recipe.release, recipe.arch, Cache(options.cache))
    lock = maker.resolve(request_of(recipe, maker), keep)
    if not options.dry_run:
        atomic_write(out, lock.dumps().encode())
    return before, lock


def _all_but(name: str, before: Lock | None, out: Path) -> list[Package]:
    """Every package of a lock but one."""
    if before is None:
        raise CapsulekitError(f"there is no lock {out} to update", hint="make it first, without --update")
    packages = {p.sha256: p for packages in before.sets.values() for p in packages}
    if name not in {p.name for p in packages.values()}:
        raise CapsulekitError(f"{out} does not lock a package {name}", hint="see: capsulekit lock --update, for all")
    return [p for p in packages.values() if p.name != name]


def changes(before: Lock | None, after: Lock) -> list[str]:
    """What differs between two locks, a line per package, sorted."""
    old = {} if before is None else _versions(before)
    new = _versions(after)
    lines = []
    for part, name in sorted(old.keys() | new.keys()):
        was, now = old.get((part, name)), new.get((part, name))
        if was is None:
            lines.append(f"{part} {name}: added {now}")
        elif now is None:
            lines.append(f"{part} {name}: removed, was {was}")
        elif was != now:
            lines.append(f"{part} {name}: {was} -> {now}")
    return lines


def _versions(lock: Lock) -> dict[tuple[str, str], str]:
    return {(part, p.name): p.version for part, packages in lock.sets.items() for p in packages}


def chain_to(path: Path, name: str) -> list[str]:
    """What asked for a locked package: "NAME VERSION", then what needs it, up to the recipe. Raises CapsulekitError."""
    lock = load(path)
    for part in SETS:
        packages = {p.name: p for p in lock.sets[part]}
        if name not in packages:
            continue
        chain, here = [f"{name} {packages[name].version}"], packages[name]
        while here.by in packages and len(chain) <= len(packages):
            here = packages[here.by]
            chain.append(here.name)
        return [*chain, {"recipe": f"the recipe ({part})"}.get(here.by, here.by or "unknown")]
    raise CapsulekitError(f"{path} does not lock a package {name}")


def write_lock_of(capsule: Path, out: Path) -> None:
    """Keep a copy of the lock that a capsule holds."""
    atomic_write(out, open_capsule(capsule).read_member("capsule.lock"))
