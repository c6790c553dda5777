"""What an image says of itself (stage1.json, see initramfs_builder.record), read back and not believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from initramfs_builder.errors import CapsulekitError
from initramfs_builder.record import FORMAT


@dataclass(frozen=True)
class Record:
    """The kernel's ``release``, the ``modules`` and ``commands`` asked for, (module, firmware) known to be missing."""

    release: str
    modules: tuple[str, ...]
    firmware_missing: frozenset[tuple[str, str]]
    commands: tuple[str, ...] = ()
    arch: str = ""
    profile: str = ""


def parse_record(text: str, name: str) -> Record:
    """Read a record; raises CapsulekitError, which says ``name``, when it is not one of this format."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CapsulekitError(f"{name} is not JSON: {error}") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise CapsulekitError(f"{name} is not a record of format {FORMAT}", hint="build stage 1 again")
    missing = told.get("firmware_missing")
    if not isinstance(missing, list) or not all(_is_pair(one) for one in missing):
        raise _wrong(name, "firmware_missing")
    for key in ("commands", "modules"):
        if not isinstance(told.get(key), list) or not all(isinstance(one, str) for one in told[key]):
            raise _wrong(name, key)
    for key in ("arch", "release", "profile"):
        if not isinstance(told.get(key), str):
            raise _wrong(name, key)
    pairs = frozenset((one["module"], one["firmware"]) for one in missing)
    return Record(
        told["release"], tuple(told["modules"]), pairs, tuple(told["commands"]), told["arch"], told["profile"]
    )


def _is_pair(one: Any) -> bool:
    return isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("module", "firmware"))


def _wrong(name: str, key: str) -> CapsulekitError:
    return CapsulekitError(f"{name}: {key} is missing or not what it should be", hint="build stage 1 again")
