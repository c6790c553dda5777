"""Would a reboot change a running node? Its last boot plan against the one it would be given now.

An outline is the part of a plan (docs/reference/openapi.yaml) that a reboot could change: names, capsule and identity,
kernel arguments, debug level, and one digest for each module over its scripts and files. It holds no secrets.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

KEPT = ("hostname", "cluster", "group", "vnfs", "identity", "kargs", "debug")
# Enough of a module's digest to tell two of its versions apart; nothing is trusted because of it.
DIGITS = 16


@dataclass(frozen=True)
class Difference:
    """One thing a reboot would change: a word of KEPT or "module NAME"; "" where it was, or would be, without."""

    what: str
    booted: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: {self.booted or '(none)'} → {self.now or '(none)'}"


def outline(plan: str) -> str:
    """The outline of a plan's text, as one line of JSON with sorted keys; pure."""
    kept: dict[str, str] = {}
    modules: dict[str, list[str]] = {}
    for line in plan.splitlines():
        word, _, rest = line.partition(" ")
        if word in KEPT:
            kept[word] = rest
        elif word == "script":
            # script STATE ORDER NAME MODULE SHA256 SIZE NEED
            modules.setdefault(rest.split(" ")[3], []).append(line)
        elif word == "data":
            # data MODULE NAME SHA256 SIZE
            modules.setdefault(rest.split(" ")[0], []).append(line)
    digests = {name: _digest(lines) for name, lines in modules.items()}
    return json.dumps({**kept, "modules": digests}, sort_keys=True, separators=(",", ":"))


def differences(booted: str, now: str) -> tuple[Difference, ...]:
    """What differs between two outlines, in the order of KEPT and then by module; pure."""
    old, new = json.loads(booted), json.loads(now)
    changed = [Difference(word, old.get(word, ""), new.get(word, "")) for word in KEPT]
    before, after = old.get("modules", {}), new.get("modules", {})
    changed += [
        Difference(f"module {name}", before.get(name, ""), after.get(name, "")) for name in sorted({*before, *after})
    ]
    return tuple(one for one in changed if one.booted != one.now)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:DIGITS]
