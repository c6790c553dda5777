"""The one spelling of a recipe, which travels in the capsule: no parents, no variables, files and scripts inside.

Written here and not by a library, because its bytes are part of the capsule: they may not change with a version.
"""

from __future__ import annotations

import base64
import re
import tomllib
from collections.abc import Iterable
from typing import Any

from capsulekit.recipe.model import Recipe, RootFile, Script, User
from capsulekit.recipe.settings import NAMED, SETTINGS
from capsulekit.recipe.variables import escaped

_HEAD = "# Flattened by capsulekit: parents merged, variables replaced, files and scripts inside.\n"
_UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"), (1, ""))
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", '"': r"\"", "\\": r"\\"}


def flatten(recipe: Recipe) -> str:
    """The recipe as TOML; ``loads_recipe`` reads it back as the same recipe."""
    out = [_HEAD]
    for header, keys in _sections(recipe):
        pairs = [f"{key} = {toml(value)}\n" for key, value in keys.items()]
        out += ["\n", f"{header}\n", *pairs]
    return "".join(out)


def question_tables(questions: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    """configure.toml: a table for each question, in the given order; nothing without questions."""
    out = []
    for key, question in questions:
        settings = ((name, question.get(name)) for name in NAMED["configure"].settings)
        pairs = [("key", key), *((name, value) for name, value in settings if value not in (None, []))]
        out.append("[[question]]\n" + "".join(f"{name} = {toml(value, plain=True)}\n" for name, value in pairs))
    return "\n".join(out).encode()


def file_sections(recipe: Recipe) -> list[str]:
    """The recipe's files as an author writes them: without what is a default."""
    defaults = {key: setting.default for key, setting in NAMED["files"].settings.items()}
    out = []
    for file in recipe.files:
        pairs = [f"{key} = {toml(value)}\n" for key, value in _file(file).items() if value != defaults[key]]
        out.append(f"[files.{_basic(file.path)}]\n" + "".join(pairs))
    return out


def _sections(recipe: Recipe) -> Iterable[tuple[str, dict[str, Any]]]:
    """Header and keys of every section that says something; plain ones without what is a list's default."""
    plain = {
        "capsule": {k: getattr(recipe, k) for k in ("name", "version", "init", "cmdline")},
        "distro": {"name": recipe.distro, "release": recipe.release, "arch": recipe.arch},
        "packages": {"include": recipe.stages[0] if recipe.stages else (), "then": recipe.stages[1:]},
        "kernel": {
            "package": recipe.kernel_package,
            "extra": recipe.kernel_extra,
            "modules": recipe.kernel_modules,
            "stage2": recipe.stage2_modules,
        },
        "rootfs": {"base": recipe.base},
        "services": {k: getattr(recipe, k) for k in ("enable", "disable", "mask")},
        "hybridize": {"paths": recipe.hybridize},
        "image": {"level": recipe.level, "release_level": recipe.release_level, "ram_max": _size(recipe.ram_max)},
    }
    for section, keys in plain.items():
        told = {k: v for k, v in keys.items() if v is not None and not _is_default(section, k, v)}
        if told:
            yield f"[{section}]", told
    yield from ((f"[groups.{g.name}]", {} if g.gid is None else {"gid": g.gid}) for g in recipe.groups)
    yield from ((f"[users.{u.name}]", _user(u)) for u in recipe.users)
    yield from ((f"[files.{_basic(f.path)}]", _file(f)) for f in recipe.files)
    yield from (("[[scripts.rootfs]]", _script(s)) for s in recipe.scripts)
    yield from ((f"[[provision.{state}]]", _script(s)) for state, s in recipe.provision)
    for question in tomllib.loads(recipe.configure.decode()).get("question", []):
        yield f"[configure.{question.pop('key')}]", question


def _is_default(section: str, key: str, value: Any) -> bool:
    return isinstance(value, tuple) and list(value) == SETTINGS[section][key].default


def _size(count: int | None) -> str | None:
    if count is None:
        return None
    return next(f"{count // unit}{letter}" for unit, letter in _UNITS if count % unit == 0)


def _user(user: User) -> dict[str, Any]:
    said = {key: getattr(user, key) for key in NAMED["users"].settings}
    # 0 is an id, and equal to False.
    return {key: value for key, value in said.items() if value not in (None, (), "") and value is not False}


def _script(script: Script) -> dict[str, Any]:
    return {"name": script.name, "text": script.data.decode()}


def _file(file: RootFile) -> dict[str, Any]:
    return {**_content(file.data), "mode": f"0{file.mode:03o}", "owner": file.owner, "group": file.group}


def _content(data: bytes) -> dict[str, Any]:
    """As text where it is text, else in base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"base64": data}
    return {"base64": data} if "\0" in text else {"content": text}


def toml(value: Any, plain: bool = False) -> str:
    """A value in TOML; ``plain`` is for a file without variables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        # Between ''' nothing is escaped, and a reader can skip over it quickly.
        return f"'''\n{base64.encodebytes(value).decode()}'''"
    if isinstance(value, str):
        text = value if plain else escaped(value)
        return _lines(text) if "\n" in text else _basic(text)
    items = [toml(item, plain) for item in value]
    if len(items) < 2 and not any("\n" in item for item in items):
        return "[" + "".join(items) + "]"
    return "[\n" + "".join("".join(f"  {line}\n" for line in f"{item},".split("\n")) for item in items) + "]"


def _basic(text: str) -> str:
    """A basic string of TOML; what does not print is escaped."""
    return '"' + re.sub(r"[^ !#-\[\]-~]", _escape, text) + '"'


def _lines(text: str) -> str:
    """A string of several lines: no three quotes in a row, none at the end."""
    escaped_text = re.sub(r'[^\n\t -\[\]-~]|"(?=""|\Z)', _escape, text)
    return f'"""\n{escaped_text}"""'


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04X}" if ord(char) < 0x10000 else f"\\U{ord(char):08X}"
