"""Reads a recipe: parents first, lists append (``!item`` removes), every key checked against the settings table."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError, TOMLKitError

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.complain import line_of, unknown, wrong
from capsulekit.recipe.model import Recipe, RootFile, Script
from capsulekit.recipe.settings import FILE_SETTINGS, SETTINGS, Setting

Table = dict[str, Any]
SCRIPT_NAME = re.compile(r"[0-9]{2}-[A-Za-z0-9][A-Za-z0-9._-]*")
# A file read by a recipe lands in memory and in the capsule; a larger thing belongs into a package.
MAX_FILE = 16 << 20


def load_recipe(path: Path) -> Recipe:
    """Read and check the recipe at ``path``; raises CapsulekitError with file, line, key and what was expected."""
    table = _flatten(path, ())
    for section, keys in SETTINGS.items():
        for key, setting in keys.items():
            if setting.required and key not in table.get(section, {}):
                raise CapsulekitError(f"{path}: [{section}] {key} is missing", hint=f"it is the {setting.help}")
    return _recipe(path, table)


def _read(path: Path) -> tuple[Table, str]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomlkit.parse(text).unwrap(), text
    except FileNotFoundError:
        raise CapsulekitError(f"there is no recipe {path}", hint="recipes are TOML files; see recipes/") from None
    except UnicodeDecodeError:
        raise CapsulekitError(f"{path}: the recipe cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise CapsulekitError(f"{path}: the recipe cannot be read: {error.strerror}") from None
    except ParseError as error:
        raise CapsulekitError(f"{path}:{error.line}: not valid TOML: {error}") from None
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise CapsulekitError(f"{path}: not valid TOML: {str(error) or type(error).__name__}") from None


def _flatten(path: Path, seen: tuple[Path, ...]) -> Table:
    """The recipe's table with its parents merged under it, and relative paths made absolute."""
    path = path.resolve()
    own, text = _read(path)
    parents = own.pop("extends", [])
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise wrong(path, text, "", "extends", "a list of recipe files")
    _check(path, text, own)
    _anchor(path, text, own)
    merged: Table = {}
    for parent in parents:
        file = (path.parent / parent).resolve()
        if file in (*seen, path):
            where = f"{path}:{line_of(text, '', 'extends')}"
            chain = " → ".join(p.name for p in (*seen, path, file))
            raise CapsulekitError(f"{where}: the recipe extends itself", hint=chain)
        if not file.is_file():
            raise wrong(path, text, "", "extends", "a list of recipe files", parent)
        _merge(merged, _flatten(file, (*seen, path)))
    if removed := _merge(merged, own):
        section, key, item = removed[0]
        raise wrong(path, text, section, key, f'a list in which "!{item}" takes out what a parent puts in')
    return merged


def _merge(into: Table, more: Table) -> list[tuple[str, str, str]]:
    """Merge two checked tables; returns the (section, key, item) of every removal that removed nothing."""
    idle = []
    for section, keys in more.items():
        have = into.setdefault(section, {})
        for key, value in keys.items():
            if not isinstance(value, list):
                # A file is replaced as a whole, but keeps its mode: content and source exclude each other.
                kept = {k: v for k, v in have.get(key, {}).items() if k == "mode"} if isinstance(value, dict) else {}
                have[key] = {**kept, **value} if isinstance(value, dict) else value
                continue
            items = list(have.get(key, []))
            for item in value:
                if item.startswith("!") and item[1:] not in items:
                    idle.append((section, key, item[1:]))
                elif item.startswith("!"):
                    items.remove(item[1:])
                elif item not in items:
                    items.append(item)
            have[key] = items
    return idle


def _anchor(path: Path, text: str, table: Table) -> None:
    """Paths in a recipe are relative to the file that holds them, whoever extends it; what they name must be there."""

    def full(section: str, key: str, name: str) -> str:
        file = Path(os.path.normpath(path.parent / name.removeprefix("!")))
        if not name.startswith("!") and not file.is_file():
            raise wrong(path, text, section, key, "an existing file", name)
        return ("!" if name.startswith("!") else "") + str(file)

    for section, key in (("scripts", "rootfs"), ("provision", "init")):
        if key in table.get(section, {}):
            table[section][key] = [full(section, key, item) for item in table[section][key]]
    for name, item in table.get("files", {}).items():
        if "source" in item:
            item["source"] = full(f'files."{name}"', "source", item["source"])


def _check(path: Path, text: str, table: Table) -> None:
    for section, keys in table.items():
        if section == "files":
            _check_files(path, text, keys)
            continue
        if section not in SETTINGS:
            raise unknown(path, text, section, section, [*SETTINGS, "files", "extends"], "section")
        if not isinstance(keys, dict):
            raise wrong(path, text, section, section, f"a section [{section}]")
        for key, value in keys.items():
            if key not in SETTINGS[section]:
                raise unknown(path, text, section, key, list(SETTINGS[section]), "key")
            _check_value(path, text, section, key, value, SETTINGS[section][key])


def _check_files(path: Path, text: str, files: Any) -> None:
    if not isinstance(files, dict):
        raise wrong(path, text, "files", "files", 'sections such as [files."/etc/motd"]')
    for name, keys in files.items():
        section = f'files."{name}"'
        if not name.startswith("/") or {"", ".", ".."} & set(name.split("/")[1:]) or not name.isprintable():
            raise wrong(path, text, section, name, "a full path without . or ..")
        if not isinstance(keys, dict):
            raise wrong(path, text, section, name, "a table with content or source")
        for key, value in keys.items():
            if key not in FILE_SETTINGS:
                raise unknown(path, text, section, key, list(FILE_SETTINGS), "key")
            _check_value(path, text, section, key, value, FILE_SETTINGS[key])
        if ("content" in keys) == ("source" in keys):
            raise wrong(path, text, section, name, "either content or source")


def _check_value(path: Path, text: str, section: str, key: str, value: Any, setting: Setting) -> None:
    if not isinstance(value, setting.type) or isinstance(value, bool):
        expected = setting.expected if setting.check else f"a value of type {setting.type.__name__}"
        raise wrong(path, text, section, key, expected, value)
    if not isinstance(value, list):
        if setting.check and not setting.check(value):
            raise wrong(path, text, section, key, setting.expected, value)
        return
    for item in value:
        # "!item" takes an item of a parent's list out again.
        if not isinstance(item, str) or (setting.check and not setting.check(item.removeprefix("!"))):
            raise wrong(path, text, section, key, setting.expected, item)


def _file(path: Path, wanted_by: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE:
            raise CapsulekitError(
                f"{wanted_by}: {path} is larger than {MAX_FILE >> 20} MiB", hint="put it into a package"
            )
        return path.read_bytes()
    except OSError as error:
        raise CapsulekitError(f"{wanted_by}: {path} cannot be read: {error.strerror}") from None


def _scripts(path: Path, names: list[str], numbered: bool) -> tuple[Script, ...]:
    found = [Script(Path(n).name, _file(Path(n), path)) for n in names]
    for script in found:
        if numbered and not SCRIPT_NAME.fullmatch(script.name):
            raise CapsulekitError(
                f"{path}: {script.name} must be named NN-name, such as 50-motd", hint="NN is its order"
            )
        if not script.data.startswith(b"#!/bin/sh"):
            raise CapsulekitError(f"{path}: {script.name} must start with #!/bin/sh", hint="scripts are POSIX sh")
    if len({s.name for s in found}) != len(found):
        raise CapsulekitError(f"{path}: two scripts have the same file name", hint="rename one")
    return tuple(sorted(found, key=lambda s: s.name)) if numbered else tuple(found)


def _recipe(path: Path, table: Table) -> Recipe:
    def get(section: str, key: str) -> Any:
        return table.get(section, {}).get(key, SETTINGS[section][key].default)

    files = tuple(
        RootFile(
            name,
            item["content"].encode() if "content" in item else _file(Path(item["source"]), path),
            int(item.get("mode", "0644"), 8),
        )
        for name, item in sorted(table.get("files", {}).items())
    )
    scripts = _scripts(path, get("scripts", "rootfs"), numbered=False)
    provision = _scripts(path, get("provision", "init"), numbered=True)
    return Recipe(
        source=str(path),
        text=_text(table),
        name=get("capsule", "name"),
        version=get("capsule", "version"),
        distro=get("distro", "name"),
        release=get("distro", "release"),
        arch=get("distro", "arch"),
        init=get("capsule", "init"),
        cmdline=get("capsule", "cmdline"),
        packages=tuple(sorted(get("packages", "include"))),
        kernel_package=get("kernel", "package"),
        kernel_modules=tuple(get("kernel", "modules")),
        stage2_modules=tuple(get("kernel", "stage2")),
        base=get("rootfs", "base"),
        enable=tuple(get("services", "enable")),
        disable=tuple(get("services", "disable")),
        mask=tuple(get("services", "mask")),
        scripts=scripts,
        files=files,
        hybridize=tuple(get("hybridize", "paths")),
        provision=provision,
        level=get("image", "level"),
    )


def _text(table: Table) -> str:
    """The flattened recipe: no parents, no paths of the author's machine, keys sorted."""
    flat = {section: dict(keys) for section, keys in sorted(table.items())}
    for section, key in (("scripts", "rootfs"), ("provision", "init")):
        if key in flat.get(section, {}):
            flat[section][key] = [Path(p).name for p in flat[section][key]]
    if "files" in flat:
        flat["files"] = {
            name: {k: Path(v).name if k == "source" else v for k, v in sorted(item.items())}
            for name, item in sorted(flat["files"].items())
        }
    return tomlkit.dumps({s: dict(sorted(k.items())) for s, k in flat.items()})
