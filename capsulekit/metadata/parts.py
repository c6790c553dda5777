"""The recipe inside a capsule, as `why` and `diff` point at it: its parts, and the key and line of each."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capsulekit.errors import TrustError
from capsulekit.recipe.lines import Keys, positions

MEMBER = "recipe.toml"


@dataclass(frozen=True)
class Place:
    """Where a recipe says something: key (such as ``[packages] include``) and line of the capsule's recipe.toml."""

    key: str
    line: int

    def __str__(self) -> str:
        return f"{MEMBER}:{self.line} {self.key}"


class RecipeParts:
    """A flattened recipe. Owners are spelt as the build does: "KIND NAME", such as "file /etc/motd"."""

    def __init__(self, data: bytes) -> None:
        """Raises TrustError when ``data`` is no TOML text."""
        try:
            self.text = data.decode("utf-8")
            self.table: Mapping[str, Any] = tomllib.loads(self.text)
        except (ValueError, RecursionError) as wrong:
            raise TrustError(f"malformed {MEMBER}: {str(wrong).splitlines()[0]}") from None

    @cached_property
    def _lines(self) -> dict[Keys, int]:
        return positions(self.text)

    @cached_property
    def owners(self) -> dict[str, tuple[Keys, Any]]:
        """Owner -> (way to it in the recipe, what the recipe says of it)."""
        return dict(self._walk())

    def place(self, owner: str) -> Place | None:
        """Where the recipe asks for an owner ("package NAME" is one too), or None."""
        if owner not in self.owners:
            return None
        keys = self.owners[owner][0]
        section, rest = str(keys[0]), [str(k) for k in keys[1:] if isinstance(k, str)]
        shown = f'[{section}."{rest[0]}"]' if section == "files" else f"[{section}] {'.'.join(rest)}"
        return Place(shown, self._lines.get(keys, 1))

    def where(self, owner: str) -> str:
        """``place`` as text, "" when the recipe does not ask for it."""
        return str(self.place(owner) or "")

    def _walk(self) -> Iterator[tuple[str, tuple[Keys, Any]]]:
        for keys, item in self._items("packages", "include"):
            yield f"package {item}", (keys, item)
        for number, stage in enumerate(_list(self._get("packages", "then"))):
            for at, item in enumerate(_list(stage)):
                yield f"package {item}", (("packages", "then", number, at), item)
        kernel = self._get("kernel", "package")
        if kernel:
            yield f"package {kernel}", (("kernel", "package"), kernel)
        for keys, item in self._items("kernel", "extra"):
            yield f"package {item}", (keys, item)
        for kind, section in (("group", "groups"), ("user", "users"), ("file", "files")):
            for name, item in _table(self.table.get(section)).items():
                yield f"{kind} {name}", ((section, name), item)
        for verb in ("enable", "disable", "mask"):
            for keys, item in self._items("services", verb):
                yield f"service {item}", (keys, verb)
        for keys, item in self._items("scripts", "rootfs"):
            name = _table(item).get("name", item) if isinstance(item, dict) else item
            yield f"script {name}", (keys, item)

    def _get(self, section: str, key: str) -> Any:
        return _table(self.table.get(section)).get(key)

    def _items(self, section: str, key: str) -> Iterator[tuple[Keys, Any]]:
        for number, item in enumerate(_list(self._get(section, key))):
            yield (section, key, number), item


def _table(value: Any) -> Mapping[str, Any]:
    """Of a recipe that nobody vouches for any value may be anything."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
