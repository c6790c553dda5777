"""What `node set` may change, and what each value may look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capsulekit.errors import CapsulekitError
from provisioner.registry.names import parse_address, parse_group, parse_line

SETTABLE = ("hostname", "groupname", "vnfs", "enabled", "debug", "desc", "boot", "kargs", "address")
# `group` is the manual's second word for groupname.
ALIASES = {"group": "groupname"}
# What one node only can have: the word, and the columns it is about.
UNIQUE = {"hostname": "host name", "address": "address"}


def parse_value(column: str, value: str) -> Any:
    """The value as the column holds it; raises CapsulekitError saying what it may be."""
    return _PARSERS.get(column, parse_line)(value)


def _enabled(value: str) -> bool:
    words = {"1": True, "yes": True, "0": False, "no": False}
    if value.lower() not in words:
        raise CapsulekitError(f"enabled cannot be {value!r}", hint="1 or yes, 0 or no")
    return words[value.lower()]


def _debug(value: str) -> int:
    level = {"no": "0", "yes": "1"}.get(value.lower(), value)
    if level not in ("0", "1", "2", "3"):
        raise CapsulekitError(f"debug cannot be {value!r}", hint="0 to 3; yes is 1, no is 0")
    return int(level)


def _address(value: str) -> str:
    return parse_address(value) if value.strip() else ""


_PARSERS: dict[str, Callable[[str], Any]] = {
    "groupname": parse_group,
    "enabled": _enabled,
    "debug": _debug,
    "address": _address,
}
