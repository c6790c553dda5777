"""A module's files → Module. The files are bytes by their path in the module: a folder's or an archive's.

docs/reference/modules.md has the keys of module.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from provisioner.catalog.model import Module, Script, Setting, TextConfig, Write

MODULE_TOML = "module.toml"
SCRIPT_NAME = re.compile(r"(\d\d)-[A-Za-z0-9][A-Za-z0-9._-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")
RESERVED = ("vnfs",)  # what the capsule's own scripts count as
KEYS = {
    "name", "version", "summary", "roles", "states", "optional", "data", "every", "limit", "settings", "text", "writes",
}  # fmt: skip
JOINS = ("lines", "names", "each")


class Wrong(CapsulekitError):
    """Something in a module is wrong; the message names the file and what."""


def read_module(files: Mapping[str, bytes], where: str, *, provider: bool = False, key_id: str = "") -> Module:
    """Read a module; ``where`` names its folder or archive in messages, ``provider`` allows it a data provider.

    Raises CapsulekitError that names the file and what is wrong in it.
    """
    file = f"{where}/{MODULE_TOML}"
    table = _table(files, file)
    name = _text(file, table, "name")
    if not NAME.fullmatch(name) or name in RESERVED:
        raise Wrong(f"{file}: a module can't be called {name!r}")
    data = _text(file, table, "data") if "data" in table else ""
    if data and (not provider or not data.isidentifier()):
        # A provider is Python of the provisioner itself: a folder from elsewhere must not choose what is imported.
        raise Wrong(f"{file}: only shipped modules may have a data provider")
    states = _texts(file, table, "states")
    if bad := [state for state in states if not NAME.fullmatch(state)]:
        raise Wrong(f"{file}: {bad[0]!r} can't be the name of a state")
    module = Module(
        name=name,
        version=_word(file, table, "version"),
        summary=_text(file, table, "summary"),
        roles=_texts(file, table, "roles"),
        states=states,
        scripts=_scripts(files, where, name, states, frozenset(_texts(file, table, "optional"))),
        data=data,
        every=_seconds(file, table, "every", 0),
        limit=_seconds(file, table, "limit", 600),
        settings=_settings(file, table),
        text=_text_config(file, table),
        writes=_writes(file, table),
        digest=digest_of(files),
        key_id=key_id,
    )
    if module.settings and module.text:
        raise Wrong(f"{file}: a module has settings or text, not both")
    return module


def digest_of(files: Mapping[str, bytes]) -> str:
    """Hex sha256 of ``SHA256  PATH`` lines: changes with every byte of the module."""
    return sha256_bytes("".join(f"{sha256_bytes(files[name])}  {name}\n" for name in sorted(files)).encode())


def _table(files: Mapping[str, bytes], file: str) -> dict[str, Any]:
    if MODULE_TOML not in files:
        raise Wrong(f"{file} is missing")
    try:
        table = tomllib.loads(files[MODULE_TOML].decode())
    except (ValueError, RecursionError) as bad:  # also a number of 5000 digits, and a thousand lists in each other
        raise Wrong(f"{file} is not TOML: {bad}") from bad
    _only(file, table, KEYS)
    return table


def _only(file: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise CapsulekitError(f"{file}: unknown key {unknown[0]}", hint="known keys: " + ", ".join(sorted(known)))


def _scripts(
    files: Mapping[str, bytes], where: str, module: str, states: tuple[str, ...], optional: frozenset[str]
) -> tuple[Script, ...]:
    found = []
    for state in states:
        for path in sorted(path for path in files if path.startswith(f"{state}/")):
            named = SCRIPT_NAME.fullmatch(path.removeprefix(f"{state}/"))
            if not named:
                raise Wrong(f"{where}/{path}: a script's name is two digits, a dash and a word, as in 20-hostname")
            if not files[path].startswith(b"#!/bin/sh"):
                raise Wrong(f"{where}/{path}: a script starts with #!/bin/sh")
            text, required = files[path], path not in optional
            found.append(Script(module, state, int(named[1]), named[0], text, sha256_bytes(text), required))
    if wrong := sorted(optional - {f"{s.state}/{s.name}" for s in found}):
        raise Wrong(f"{where}/{MODULE_TOML}: optional names a script that is not there: {wrong[0]}")
    return tuple(found)


def _settings(file: str, table: dict[str, Any]) -> tuple[Setting, ...]:
    found = []
    for key, told in _subtable(file, table, "settings").items():
        place = f"{file}: settings.{key}"
        if not KEY.fullmatch(key) or not isinstance(told, dict):
            raise Wrong(f"{place} must be a table, its name small letters, digits and _")
        _only(place, told, {"default", "summary", "secret"})
        default = told.get("default")
        if not isinstance(default, str | int | bool) or (isinstance(default, str) and not default.isprintable()):
            raise Wrong(f"{place}: default must be one line of text, a whole number, true or false")
        found.append(Setting(key, default, _text(place, told, "summary"), _truth(place, told, "secret")))
    return tuple(found)


def _text_config(file: str, table: dict[str, Any]) -> TextConfig | None:
    told = _subtable(file, table, "text")
    if not told:
        return None
    place = f"{file}: text"
    _only(place, told, {"file", "join", "default", "secret"})
    name, join, default = (told.get(key, usual) for key, usual in (("file", ""), ("join", "lines"), ("default", "")))
    if not isinstance(name, str) or (name and not NAME.fullmatch(name)):
        raise Wrong(f"{place}: file must be a name")
    if join not in JOINS:
        raise Wrong(f"{place}: join must be one of " + ", ".join(JOINS))
    if not isinstance(default, str):
        raise Wrong(f"{place}: default must be text")
    return TextConfig(name, join, default, _truth(place, told, "secret"))


def _writes(file: str, table: dict[str, Any]) -> tuple[Write, ...]:
    told = table.get("writes", [])
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise Wrong(f"{file}: writes must be tables: [[writes]]")
    found = []
    for one in told:
        place = f"{file}: writes"
        _only(place, one, {"path", "data", "text", "note"})
        if not all(isinstance(value, str) for value in one.values()):
            raise Wrong(f"{place}: every value must be text")
        path = one.get("path", "")
        if not re.fullmatch(r"(/[^/\s\x00-\x1f]+)+", path) or ".." in path.split("/"):
            raise Wrong(f"{place}: path must be an absolute path")
        found.append(Write(path, one.get("data", ""), one.get("text", ""), one.get("note", "")))
    return tuple(found)


def _subtable(file: str, table: dict[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise Wrong(f"{file}: {key} must be a table")
    return value


def _text(file: str, table: dict[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise Wrong(f"{file}: {key} must be one line of text")
    return value


def _word(file: str, table: dict[str, Any], key: str) -> str:
    value = _text(file, table, key)
    if not NAME.fullmatch(value):
        raise Wrong(f"{file}: {key} must be one word: letters, digits and . _ - only")
    return value


def _texts(file: str, table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise Wrong(f"{file}: {key} must be a list of texts")
    return tuple(value)


def _seconds(file: str, table: dict[str, Any], key: str, usual: int) -> int:
    value = table.get(key, usual)
    if type(value) is not int or not 0 <= value <= 86400 or (key == "limit" and value == 0):
        raise Wrong(f"{file}: {key} must be a number of seconds, at most a day's")
    return value


def _truth(file: str, table: dict[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise Wrong(f"{file}: {key} must be true or false")
    return value
