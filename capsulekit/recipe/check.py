"""One recipe file against the table of settings: every section, key and value."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from capsulekit.recipe.document import Document
from capsulekit.recipe.lines import Keys
from capsulekit.recipe.settings import EXTENDS, NAMED, SCRIPT_NAME, SECTIONS, SETTINGS, TEXT, Setting, Shape

_TYPES = {"number": int, "flag": bool, "line": str, "text": str}


def check(document: Document) -> None:
    """Raises CapsulekitError naming file, line and key of the first thing that is wrong."""
    for section, keys in document.table.items():
        if section in SETTINGS:
            _section(document, (section,), keys, SETTINGS[section])
        elif section in NAMED:
            _named(document, section, keys)
        elif section not in ("extends", "variables"):
            raise document.unknown((section,), [*SECTIONS, "extends"], "section")


def extends(document: Document) -> list[str]:
    """The parents a recipe names."""
    if "extends" not in document.table:
        return []
    _value(document, ("extends",), document.table["extends"], EXTENDS)
    parents: list[str] = document.table["extends"]
    for number, parent in enumerate(parents):
        if "@{" in parent:
            raise document.wrong(("extends", number), "a path without variables: parents are read before them", parent)
    return parents


def _section(document: Document, at: Keys, keys: Any, settings: dict[str, Setting]) -> None:
    if not isinstance(keys, dict):
        raise document.wrong(at, f"a section [{at[-1]}]" if len(at) == 1 else "a table")
    for key, value in keys.items():
        if key not in settings:
            raise document.unknown((*at, key), settings, "key")
        _value(document, (*at, key), value, settings[key].shape)


def _named(document: Document, section: str, tables: Any) -> None:
    family = NAMED[section]
    if not isinstance(tables, dict):
        raise document.wrong((section,), f"sections such as {family.header}")
    for name, keys in tables.items():
        if not family.name.fits(name):
            raise document.wrong((section, name), family.name.expected)
        _section(document, (section, name), keys, family.settings)
        if section == "files":
            _file(document, name, keys)


def _file(document: Document, name: str, keys: dict[str, Any]) -> None:
    ways = [key for key in ("content", "source", "base64") if key in keys]
    if len(ways) > 1:
        raise document.wrong(("files", name, ways[1]), "left out: content, source and base64 exclude each other")
    if "base64" in keys:
        try:
            base64.b64decode("".join(keys["base64"].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise document.wrong(("files", name, "base64"), f"base64: {error}") from None


def _value(document: Document, at: Keys, value: Any, shape: Shape) -> None:
    """Check one value; lists item by item, so that an error names the item's line."""
    if shape.kind in ("lines", "lists", "scripts"):
        if not isinstance(value, list):
            raise document.wrong(at, shape.expected, value)
        for number, item in enumerate(value):
            _item(document, (*at, number), item, shape)
        return
    right = isinstance(value, _TYPES[shape.kind]) and isinstance(value, bool) == (shape.kind == "flag")
    if not right or (isinstance(value, str) and not shape.fits(value)):
        raise document.wrong(at, shape.expected, value)
    if shape.kind == "number" and not shape.least <= value <= shape.most:
        raise document.wrong(at, shape.expected, value)


def _item(document: Document, at: Keys, item: Any, shape: Shape) -> None:
    if shape.kind == "lists" and isinstance(item, list):
        for number, inner in enumerate(item):
            if not isinstance(inner, str) or not shape.fits(inner.removeprefix("!")):
                raise document.wrong((*at, number), shape.expected, inner)
    elif shape.kind == "scripts" and isinstance(item, dict):
        _script(document, at, item)
    # "!item" takes an item of a parent's list out again.
    elif shape.kind == "lists" or not isinstance(item, str) or not shape.fits(item.removeprefix("!")):
        raise document.wrong(at, shape.expected, item)


def _script(document: Document, at: Keys, item: dict[str, Any]) -> None:
    shapes = {"name": SCRIPT_NAME, "text": TEXT}
    for key, value in item.items():
        if key not in shapes:
            raise document.unknown((*at, key), shapes, "key")
        _value(document, (*at, key), value, shapes[key])
    for key in shapes:
        if key not in item:
            raise document.wrong(at, "a script file or a table with name and text", item)
