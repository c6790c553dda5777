"""Recipes laid one over the other, parents first: lists append, ``!item`` removes, everything else replaces."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.document import Document, read_regular
from capsulekit.recipe.lines import Keys
from capsulekit.recipe.model import Script
from capsulekit.recipe.settings import NAMED, NUMBERED, SCRIPT_NAME, SETTINGS

# Bytes. What a recipe reads lands in memory and in the capsule's recipe.toml; larger things belong into a package.
MAX_FILE = 16 << 20
MAX_FILES = 64 << 20
_WAYS = ("content", "source", "base64")


@dataclass
class Merged:
    """What the recipes added so far say together.

    ``values`` holds plain settings and named sections, ``stages`` the package lists in their order, ``last`` the
    recipe that said something about a named section last. In ``files`` the key "data" stands for the content.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: list[list[str]] = field(default_factory=list)
    last: dict[tuple[str, str], Document] = field(default_factory=dict)
    _removed: set[tuple[Keys, str]] = field(default_factory=set)
    _read: int = 0

    def add(self, document: Document) -> None:
        """Lay one checked recipe over those before; raises CapsulekitError."""
        for section, keys in document.table.items():
            if section == "packages":
                self._packages(document, keys)
            elif section in SETTINGS:
                self._keys(document, (section,), keys, self.values.setdefault(section, {}))
            elif section in NAMED:
                for name, own in keys.items():
                    self._named(document, section, name, own)

    def get(self, section: str, key: str) -> Any:
        """The value of a plain setting, or its default."""
        return self.values.get(section, {}).get(key, SETTINGS[section][key].default)

    def named(self, section: str) -> list[tuple[str, dict[str, Any]]]:
        """The sections of a family by name, sorted; keys that have a default and were left out have it."""
        defaults = {k: s.default for k, s in NAMED[section].settings.items() if s.default is not None}
        return [(name, {**defaults, **keys}) for name, keys in sorted(self.values.get(section, {}).items())]

    def _packages(self, document: Document, keys: dict[str, Any]) -> None:
        lists: list[tuple[Keys, list[str]]] = [(("packages", "include"), keys.get("include", []))]
        lists += [(("packages", "then", number), items) for number, items in enumerate(keys.get("then", []))]
        for at, items in lists:
            stage: list[str] = []
            self.stages.append(stage)
            self._append(document, at, self.stages, items)
            stage.sort()
        self.stages = [stage for stage in self.stages if stage]

    def _named(self, document: Document, section: str, name: str, own: dict[str, Any]) -> None:
        have = self.values.setdefault(section, {}).setdefault(name, {})
        at: Keys = (section, name)
        keys = dict(own)
        if section == "files" and any(way in own for way in _WAYS):
            data = self._content(document, at, own)
            keys = {**{k: v for k, v in own.items() if k not in _WAYS}, "data": data}
        self._keys(document, at, keys, have)
        self.last[section, name] = document

    def _keys(self, document: Document, at: Keys, keys: dict[str, Any], have: dict[str, Any]) -> None:
        for key, value in keys.items():
            if not isinstance(value, list):
                have[key] = value
                continue
            more = self._scripts(document, (*at, key), value) if at[0] in ("scripts", "provision") else value
            items = list(have.get(key, []))
            self._append(document, (*at, key), [items], more)
            have[key] = items

    def _append(self, document: Document, at: Keys, lists: Sequence[list[Any]], more: Sequence[Any]) -> None:
        """Add items to the last of the lists, unless one of the lists has them; ``!item`` takes one out of any."""
        for number, item in enumerate(more):
            if not isinstance(item, str) or not item.startswith("!"):
                if not any(item in have for have in lists):
                    _check_name(document, (*at, number), item, lists[-1])
                    lists[-1].append(item)
                continue
            gone = item[1:]
            place = (at[:2] if at[0] == "packages" else at, gone)
            holding = [have for have in lists if gone in map(_identity, have)]
            # Two parents may take the same thing out of what they share.
            if not holding and place not in self._removed:
                raise document.wrong((*at, number), f'a list in which "!{gone}" takes out what a parent puts in')
            for have in holding:
                have[:] = [one for one in have if _identity(one) != gone]
            self._removed.add(place)

    def _scripts(self, document: Document, at: Keys, items: list[Any]) -> list[Script | str]:
        found: list[Script | str] = []
        name = SCRIPT_NAME if at[0] == "scripts" else NUMBERED
        for number, item in enumerate(items):
            here = (*at, number)
            if isinstance(item, dict):
                script = Script(item["name"], item["text"].encode())
            elif item.startswith("!"):
                found.append("!" + Path(item[1:]).name)  # the names in a list are unique
                continue
            else:
                script = Script(Path(item).name, self._file(document, here, item))
            if not name.fits(script.name):
                raise document.wrong(here, name.expected, script.name)
            _check_script(document, here, script)
            found.append(script)
        return found

    def _content(self, document: Document, at: Keys, own: dict[str, Any]) -> bytes:
        if "content" in own:
            return str(own["content"]).encode()
        if "base64" in own:
            return base64.b64decode("".join(own["base64"].split()))
        return self._file(document, (*at, "source"), own["source"])

    def _file(self, document: Document, at: Keys, name: str) -> bytes:
        """A file beside the recipe; what it names must be there."""
        if document.folder is None:
            raise document.wrong(at, "text of its own: this recipe may name no file", name)
        try:
            data = read_regular(document.folder / name, MAX_FILE)
        except OSError as error:
            raise document.wrong(at, f"an existing file ({error.strerror})", name) from None
        if data is None or self._read + len(data) > MAX_FILES:
            much = f"is larger than {MAX_FILE >> 20} MiB" if data is None else f"is one too many: {MAX_FILES >> 20} MiB"
            raise CapsulekitError(f"{document.at(at)}: the file {name} {much}", hint="put it into a package")
        self._read += len(data)
        return data


def _identity(item: Any) -> Any:
    return item.name if isinstance(item, Script) else item


def _check_name(document: Document, at: Keys, item: Any, have: Sequence[Any]) -> None:
    if isinstance(item, Script) and item.name in map(_identity, have):
        raise CapsulekitError(
            f"{document.at(at)}: two scripts have the same file name {item.name}",
            hint=f'rename one, or take the parent\'s out first: "!{item.name}"',
        )


def _check_script(document: Document, at: Keys, script: Script) -> None:
    if script.data.split(b"\n", 1)[0].split(b" ")[0] != b"#!/bin/sh":
        raise CapsulekitError(
            f"{document.at(at)}: {script.name} must start with #!/bin/sh", hint="scripts are POSIX sh"
        )
    try:
        text = script.data.decode()
    except UnicodeDecodeError as error:
        line = script.data.count(b"\n", 0, error.start) + 1
        raise CapsulekitError(f"{document.at(at)}: line {line} of {script.name} is not UTF-8 text") from None
    if "\0" in text:
        raise CapsulekitError(f"{document.at(at)}: {script.name} holds a NUL byte: it is no script")
