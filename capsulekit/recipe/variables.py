"""Variables: ``@{name}`` in a value stands for ``[variables] name``, ``@@{`` for the two characters ``@{``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from capsulekit.errors import UsageError
from capsulekit.recipe.document import Document, nearest, printable
from capsulekit.recipe.lines import Keys
from capsulekit.recipe.settings import LINE, VARIABLE

_USE = re.compile(r"@@\{|@\{([^}\n]*)(\}?)")


def declared(document: Document) -> dict[str, str]:
    """The variables one recipe declares, with their defaults; raises CapsulekitError."""
    table = document.table.get("variables", {})
    if not isinstance(table, dict):
        raise document.wrong(("variables",), "a section [variables]")
    for name, value in table.items():
        if not VARIABLE.fits(name):
            raise document.wrong(("variables", name), VARIABLE.expected)
        if not isinstance(value, str) or not LINE.fits(value):
            raise document.wrong(("variables", name), LINE.expected, value)
    return table


def chosen(defaults: Mapping[str, str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """The value of every variable; raises UsageError for a given one that no recipe declares."""
    for name, value in given.items():
        if name not in defaults:
            raise UsageError(f"{where}: there is no variable {printable(name)} to set", hint=nearest(name, defaults))
        if not LINE.fits(value):
            raise UsageError(f"{where}: the variable {name} must be set to {LINE.expected}")
    return {**defaults, **given}


def substitute(document: Document, values: Mapping[str, str]) -> Document:
    """The document with the variables of all its values replaced; raises CapsulekitError for an unknown one."""

    def walk(value: Any, keys: Keys) -> Any:
        if isinstance(value, str):
            return _USE.sub(lambda found: replaced(found, keys), value)
        if isinstance(value, list):
            return [walk(item, (*keys, number)) for number, item in enumerate(value)]
        if isinstance(value, dict):
            return {name: walk(item, (*keys, name)) for name, item in value.items()}
        return value

    def replaced(found: re.Match[str], keys: Keys) -> str:
        name = found[1]
        if name is None:
            return "@{"
        if not found[2] or not VARIABLE.fits(name):
            raise document.wrong(keys, "text in which @{name} is a variable; write @@{ for the characters @{", found[0])
        if name not in values:
            raise document.unknown((*keys, name), values, "variable")
        return values[name]

    table = {key: value if key == "variables" else walk(value, (key,)) for key, value in document.table.items()}
    return Document(document.where, document.folder, document.text, table)


def escaped(text: str) -> str:
    """Text that ``substitute`` gives back as it is."""
    return text.replace("@{", "@@{")
