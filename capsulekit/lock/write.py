"""Locks as files: made from a recipe, or taken out of a capsule that was just built."""

from __future__ import annotations

from pathlib import Path

from capsulekit.cache import Cache
from capsulekit.capsule.read import open_capsule
from capsulekit.distro.base import distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write
from capsulekit.lock.model import Lock
from capsulekit.recipe.load import load_recipe


def write_lock(recipe_path: Path, out: Path, cache_dir: Path) -> Lock:
    """Choose the recipe's packages from the archive as it is now and write the lock; raises CapsulekitError."""
    from capsulekit.build import make_lock

    recipe = load_recipe(recipe_path)
    if not out.parent.is_dir():
        raise CapsulekitError(f"there is no folder {out.parent} to write the lock to", hint="make it first")
    if out.is_dir():
        raise CapsulekitError(f"{out} is a folder", hint=f"name the lock's file, such as {out}/{recipe_path.stem}.lock")
    lock = make_lock(recipe, distro(recipe.distro, recipe.release, recipe.arch, Cache(cache_dir)))
    atomic_write(out, lock.dumps().encode())
    return lock


def write_lock_of(capsule: Path, out: Path) -> None:
    """Keep a copy of the lock that a capsule holds."""
    atomic_write(out, open_capsule(capsule).read_member("capsule.lock"))
