"""The modules that can be activated: one folder each, found by its ``module.toml``.

module.toml: ``name``, ``version``, ``summary``, ``roles`` (those it is activated for when none is named), ``states``
(it has a folder of scripts ``NN-name`` for each), ``optional`` (scripts, ``STATE/NN-name``, whose failure does not
fail the state), ``data`` (the file provisioner/DATA.py whose ``files_for(paths, nodeid)`` gives one node's files).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from capsulekit.sitepaths import SitePaths

SHIPPED = Path(__file__).parent / "modules"
SCRIPT_NAME = re.compile(r"(\d\d)-[A-Za-z0-9][A-Za-z0-9._-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KEYS = {"name", "version", "summary", "roles", "states", "optional", "data"}


@dataclass(frozen=True)
class Script:
    """One script of a module; ``order`` is its two-digit number, ``text`` its bytes."""

    module: str
    state: str
    order: int
    name: str
    text: bytes
    sha256: str
    required: bool = True


@dataclass(frozen=True)
class DataFile:
    """One file that a module gives to one node."""

    module: str
    name: str
    content: bytes
    sha256: str


@dataclass(frozen=True)
class Module:
    """A module as its folder says; ``roles`` are the default ones, ``data`` names its provider or is empty."""

    name: str
    version: str
    summary: str
    roles: tuple[str, ...]
    states: tuple[str, ...]
    scripts: tuple[Script, ...]
    data: str = ""

    def scripts_for(self, state: str) -> tuple[Script, ...]:
        """The scripts that run in one state, in number order."""
        return tuple(s for s in self.scripts if s.state == state)

    def data_for(self, paths: SitePaths, nodeid: str) -> tuple[DataFile, ...]:
        """The files this module gives to one node, sorted by name. They may be secret: never log them."""
        if not self.data:
            return ()
        files: dict[str, bytes] = import_module(f"provisioner.{self.data}").files_for(paths, nodeid)
        return tuple(DataFile(self.name, name, text, sha256_bytes(text)) for name, text in sorted(files.items()))


class Catalog:
    """The modules under one folder (the shipped ones unless another is given), read once."""

    def __init__(self, root: Path = SHIPPED) -> None:
        found = [load_module(f.parent) for f in sorted(root.glob("*/module.toml"))]
        self._modules = {module.name: module for module in found}

    def modules(self) -> list[Module]:
        """Every module, sorted by name."""
        return [self._modules[name] for name in sorted(self._modules)]

    def module(self, name: str) -> Module | None:
        """One module, or None."""
        return self._modules.get(name)


def load_module(folder: Path) -> Module:
    """Read a module's folder; raises CapsulekitError that names the file and what is wrong in it."""
    file = folder / "module.toml"
    try:
        table = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        raise CapsulekitError(f"{file} is not TOML: {bad}") from bad
    if unknown := sorted(table.keys() - KEYS):
        raise CapsulekitError(f"{file}: unknown key {unknown[0]}", hint="known keys: " + ", ".join(sorted(KEYS)))
    name = _text(file, table, "name")
    if not NAME.fullmatch(name) or name != folder.name:
        raise CapsulekitError(f"{file}: name must be that of the folder, {folder.name}")
    data = _text(file, table, "data") if "data" in table else ""
    if data and (folder.parent != SHIPPED or not data.isidentifier()):
        # A provider is Python of the provisioner itself: a folder from elsewhere must not choose what is imported.
        raise CapsulekitError(f"{file}: only shipped modules may have a data provider")
    states = _texts(file, table, "states")
    return Module(
        name=name,
        version=_text(file, table, "version"),
        summary=_text(file, table, "summary"),
        roles=_texts(file, table, "roles"),
        states=states,
        scripts=_scripts(file, name, states, frozenset(_texts(file, table, "optional"))),
        data=data,
    )


def _scripts(file: Path, module: str, states: tuple[str, ...], optional: frozenset[str]) -> tuple[Script, ...]:
    found = []
    for state in states:
        for path in sorted((file.parent / state).glob("*")):
            named = SCRIPT_NAME.fullmatch(path.name)
            if not named:
                raise CapsulekitError(f"{path}: a script's name is two digits, a dash and a word, as in 20-hostname")
            text = path.read_bytes()
            required = f"{state}/{path.name}" not in optional
            found.append(Script(module, state, int(named[1]), path.name, text, sha256_bytes(text), required))
    if wrong := sorted(optional - {f"{s.state}/{s.name}" for s in found}):
        raise CapsulekitError(f"{file}: optional names a script that is not there: {wrong[0]}")
    return tuple(found)


def _text(file: Path, table: dict[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise CapsulekitError(f"{file}: {key} must be one line of text")
    return value


def _texts(file: Path, table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise CapsulekitError(f"{file}: {key} must be a list of texts")
    return tuple(value)
