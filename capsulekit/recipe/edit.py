"""Changes values of a recipe's text; its comments, order and layout stay as its author left them."""

from __future__ import annotations

from collections.abc import Sequence

import tomlkit
from tomlkit.items import Item

Value = str | int | bool | Sequence[str]


def change(text: str, section: str, key: str, value: Value) -> str:
    """The text with one value of a section set; the section and the key are added where they are missing.

    ``text`` is valid TOML. ``section`` is a plain one, such as "capsule"; "" is the part above all sections.
    """
    document = tomlkit.parse(text)
    if section and section not in document:
        document.add(tomlkit.nl())
        document.add(section, tomlkit.table())
    table = document[section] if section else document
    table[key] = _item(value)
    return tomlkit.dumps(document)


def _item(value: Value) -> Item:
    if isinstance(value, str | int):
        return tomlkit.item(value)
    array = tomlkit.array()
    array.extend(value)
    return array.multiline(len(value) > 1)
