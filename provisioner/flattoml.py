"""The site's own settings files: one flat TOML table each, whose keys are the fields of a dataclass."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError


def read_flat(path: Path, example: object) -> dict[str, Any]:
    """The file's table; each key must be an attribute of ``example`` and have its type.

    Raises FileNotFoundError, or CapsulekitError naming the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CapsulekitError(f"{path}: {error}") from error
    known: dict[str, Any] = vars(example)
    for key, value in table.items():
        if key not in known:
            raise CapsulekitError(f"{path}: unknown key {key!r}", hint="known: " + ", ".join(sorted(known)))
        if type(value) is not type(known[key]):
            raise CapsulekitError(f"{path}: {key} must be a {type(known[key]).__name__}, not {value!r}")
    return table


def render_flat(heading: str, values: Mapping[str, str | int | bool], comments: Mapping[str, str]) -> str:
    """A new commented file: each key under the comment that explains it."""
    import tomlkit

    parts = [f"# {heading}\n"]
    for key, value in values.items():
        parts.append(f"\n# {comments[key]}\n{key} = {tomlkit.item(value).as_string()}\n")
    return "".join(parts)


def updated(text: str, changes: Mapping[str, str | int | bool]) -> str:
    """A file's text with some keys changed, its comments and its order kept."""
    import tomlkit

    document = tomlkit.parse(text)
    for key, value in changes.items():
        if document.get(key) != value:
            document[key] = value
    return tomlkit.dumps(document)


def update_flat(path: Path, changes: Mapping[str, str | int | bool]) -> bool:
    """Change some keys of an existing file and keep its comments and order; True when the file's text changed."""
    from capsulekit.files import atomic_write

    old = path.read_text(encoding="utf-8")
    new = updated(old, changes)
    if new != old:
        atomic_write(path, new.encode(), path.stat().st_mode & 0o777)
    return new != old
