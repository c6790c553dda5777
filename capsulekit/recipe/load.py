"""Reads a recipe: parents first, lists append (``!item`` removes), every key checked against the settings table."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError

from capsulekit.errors import CapsulekitError
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
    except (OSError, UnicodeDecodeError) as error:
        raise CapsulekitError(f"{path}: the recipe cannot be read: {error}") from None
    except ParseError as error:
        raise CapsulekitError(f"{path}:{error.line}: not valid TOML: {error}") from None


def _flatten(path: Path, seen: tuple[Path, ...]) -> Table:
    """The recipe's table with its parents merged under it, and relative paths made absolute."""
    path = path.resolve()
    if path in seen:
        raise CapsulekitError(f"{path}: the recipe extends itself", hint=" → ".join(p.name for p in (*seen, path)))
    own, text = _read(path)
    parents = own.pop("extends", [])
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise _wrong(path, text, "", "extends", "a list of recipe files")
    _check(path, text, own)
    _anchor(path.parent, own)
    merged: Table = {}
    for parent in parents:
        _merge(merged, _flatten(path.parent / parent, (*seen, path)))
    _merge(merged, own)
    return merged


def _merge(into: Table, more: Table) -> None:
    for key, value in more.items():
        have = into.get(key)
        if isinstance(have, dict) and isinstance(value, dict):
            _merge(have, value)
        elif isinstance(value, list):
            kept = list(have or [])
            for item in value:
                if item.startswith("!"):
                    kept = [k for k in kept if k != item[1:]]
                elif item not in kept:
                    kept.append(item)
            into[key] = kept
        else:
            into[key] = value


def _anchor(folder: Path, table: Table) -> None:
    """Paths in a recipe are relative to the file that holds them, whoever extends it."""
    for section, key in (("scripts", "rootfs"), ("provision", "init")):
        if key in table.get(section, {}):
            table[section][key] = [str(folder / item) for item in table[section][key]]
    for item in table.get("files", {}).values():
        if "source" in item:
            item["source"] = str(folder / item["source"])


def _check(path: Path, text: str, table: Table) -> None:
    for section, keys in table.items():
        if section == "files":
            _check_files(path, text, keys)
            continue
        if section not in SETTINGS:
            raise _unknown(path, text, section, section, [*SETTINGS, "files", "extends"], "section")
        if not isinstance(keys, dict):
            raise _wrong(path, text, section, section, f"a section [{section}]")
        for key, value in keys.items():
            if key not in SETTINGS[section]:
                raise _unknown(path, text, section, key, list(SETTINGS[section]), "key")
            _check_value(path, text, section, key, value, SETTINGS[section][key])


def _check_files(path: Path, text: str, files: Any) -> None:
    if not isinstance(files, dict):
        raise _wrong(path, text, "files", "files", 'sections such as [files."/etc/motd"]')
    for name, keys in files.items():
        section = f'files."{name}"'
        if not name.startswith("/") or {"", ".", ".."} & set(name.split("/")[1:]) or not name.isprintable():
            raise _wrong(path, text, section, name, "a full path without . or ..")
        if not isinstance(keys, dict):
            raise _wrong(path, text, section, name, "a table with content or source")
        for key, value in keys.items():
            if key not in FILE_SETTINGS:
                raise _unknown(path, text, section, key, list(FILE_SETTINGS), "key")
            _check_value(path, text, section, key, value, FILE_SETTINGS[key])
        if ("content" in keys) == ("source" in keys):
            raise _wrong(path, text, section, name, "either content or source")


def _check_value(path: Path, text: str, section: str, key: str, value: Any, setting: Setting) -> None:
    if not isinstance(value, setting.type) or isinstance(value, bool):
        raise _wrong(path, text, section, key, setting.expected if setting.check else f"a value of type {setting.type.__name__}")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(value, list) and not isinstance(item, str):
            raise _wrong(path, text, section, key, setting.expected)
        if setting.check and not setting.check(item):
            raise _wrong(path, text, section, key, setting.expected, got=item)


def _line(text: str, section: str, key: str) -> int:
    """The line a key stands on: tomlkit keeps no positions, so look for it below its section's header."""
    inside = section in ("", key)
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith(f"[{section}]"):
            inside = True
            if section == key:
                return number
        elif line.startswith("["):
            inside = line.strip("[] ") == key
        if inside and re.match(rf"\s*\"?{re.escape(key)}\"?\s*(=|\.|\])", line.lstrip("[")):
            return number
    return 1


def _unknown(path: Path, text: str, section: str, key: str, known: list[str], kind: str) -> CapsulekitError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"{path}:{_line(text, section, key)}"
    inside = f" in [{section}]" if kind == "key" else ""
    hint = f"did you mean {near[0]}?" if near else "known here: " + ", ".join(sorted(known))
    return CapsulekitError(f"{where}: unknown {kind} {key}{inside}", hint=hint)


def _wrong(path: Path, text: str, section: str, key: str, expected: str, got: object = None) -> CapsulekitError:
    shown = f", not {got!r}" if got is not None else ""
    where = f"[{section}] " if section and section != key else ""
    return CapsulekitError(f"{path}:{_line(text, section, key)}: {where}{key} must be {expected}{shown}")


def _file(path: Path, wanted_by: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE:
            raise CapsulekitError(f"{wanted_by}: {path} is larger than {MAX_FILE >> 20} MiB", hint="put it into a package")
        return path.read_bytes()
    except OSError as error:
        raise CapsulekitError(f"{wanted_by}: {path} cannot be read: {error.strerror}") from None


def _scripts(path: Path, names: list[str], numbered: bool) -> tuple[Script, ...]:
    found = [Script(Path(n).name, _file(Path(n), path)) for n in names]
    for script in found:
        if numbered and not SCRIPT_NAME.fullmatch(script.name):
            raise CapsulekitError(f"{path}: {script.name} must be named NN-name, such as 50-motd", hint="NN is its order")
        if not script.data.startswith(b"#!/bin/sh"):
            raise CapsulekitError(f"{path}: {script.name} must start with #!/bin/sh", hint="scripts are POSIX sh")
    if len({s.name for s in found}) != len(found):
        raise CapsulekitError(f"{path}: two scripts have the same file name", hint="rename one")
    return tuple(sorted(found, key=lambda s: s.name)) if numbered else tuple(found)


def _recipe(path: Path, table: Table) -> Recipe:
    def get(section: str, key: str) -> Any:
        return table.get(section, {}).get(key, SETTINGS[section][key].default)

    files = tuple(
        RootFile(name, item["content"].encode() if "content" in item else _file(Path(item["source"]), path),
                 int(item.get("mode", "0644"), 8))
        for name, item in sorted(table.get("files", {}).items())
    )  # fmt: skip
    scripts = _scripts(path, get("scripts", "rootfs"), numbered=False)
    provision = _scripts(path, get("provision", "init"), numbered=True)
    return Recipe(
        source=str(path), text=_text(table), name=get("capsule", "name"), version=get("capsule", "version"),
        distro=get("distro", "name"), release=get("distro", "release"), arch=get("distro", "arch"),
        init=get("capsule", "init"), cmdline=get("capsule", "cmdline"), packages=tuple(sorted(get("packages", "include"))),
        kernel_package=get("kernel", "package"), kernel_modules=tuple(get("kernel", "modules")),
        stage2_modules=tuple(get("kernel", "stage2")), base=get("rootfs", "base"), enable=tuple(get("services", "enable")),
        disable=tuple(get("services", "disable")), mask=tuple(get("services", "mask")), scripts=scripts, files=files,
        hybridize=tuple(get("hybridize", "paths")), provision=provision, level=get("image", "level"),
    )  # fmt: skip


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
