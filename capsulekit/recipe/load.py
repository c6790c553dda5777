"""Reads a recipe: parents first, variables replaced, every key checked, the files it names taken in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.check import check, extends
from capsulekit.recipe.document import Document, parse, read
from capsulekit.recipe.flat import flatten
from capsulekit.recipe.make import make
from capsulekit.recipe.merge import Merged
from capsulekit.recipe.model import Recipe
from capsulekit.recipe.settings import PACKED
from capsulekit.recipe.variables import chosen, declared, substitute

# More parents than this is a mistake of a program that writes recipes.
MAX_CHAIN = 64


def load_recipe(path: Path, variables: Mapping[str, str] | None = None, release: bool = False) -> Recipe:
    """Read and check the recipe at ``path``.

    ``variables`` are set over the recipes' own; with ``release`` its level becomes its release level. Raises
    CapsulekitError with file, line, key and what was expected, and UsageError for a variable that no recipe has.
    """
    chain: dict[str, Document] = {}
    _collect(path, str(path), (), chain)
    recipe = _merge(list(chain.values()), variables or {}, str(path))
    if recipe.base == PACKED:
        raise CapsulekitError(
            f"{path}: [rootfs] base {PACKED} cannot be built: its root was made elsewhere",
            hint="pack the tree again with: capsulekit pack",
        )
    if release:
        recipe = replace(recipe, level=recipe.release_level)
    return replace(recipe, text=flatten(recipe))


def loads_recipe(text: str, where: str) -> Recipe:
    """Read a flattened recipe out of a capsule: it may name no other file. Raises CapsulekitError."""
    document = parse(where, None, text)
    if "extends" in document.table:
        raise document.wrong(("extends",), "left out: a flattened recipe has no parents")
    recipe = _merge([document], {}, where)
    return replace(recipe, text=flatten(recipe))


def _collect(path: Path, where: str, seen: tuple[str, ...], chain: dict[str, Document]) -> None:
    """Read a recipe and its parents into ``chain``, parents first, each file once however often it is named."""
    identity = os.path.realpath(path)
    document = read(path, where)
    for number, parent in enumerate(extends(document)):
        file = path.parent / parent
        real = os.path.realpath(file)
        if real in (*seen, identity):
            circle = " → ".join(Path(p).name for p in (*seen, identity, real))
            raise CapsulekitError(f"{document.at(('extends', number))}: the recipe extends itself", hint=circle)
        if not file.exists() and not file.is_symlink():
            raise document.wrong(("extends", number), "a list of recipe files", parent)
        if real not in chain:
            _collect(file, _shown(file), (*seen, identity), chain)
    if len(chain) >= MAX_CHAIN:
        raise CapsulekitError(f"{where}: the recipe has more than {MAX_CHAIN} parents")
    chain[identity] = document


def _shown(file: Path) -> str:
    """A path without the way up and down again, where that names the same file."""
    short = os.path.normpath(file)
    return short if os.path.realpath(short) == os.path.realpath(file) else str(file)


def _merge(documents: list[Document], given: Mapping[str, str], where: str) -> Recipe:
    defaults: dict[str, str] = {}
    for document in documents:
        defaults |= declared(document)
    values = chosen(defaults, given, where)
    merged = Merged()
    for document in documents:
        replaced = substitute(document, values)
        check(replaced)
        merged.add(replaced)
    return make(merged, where)
