"""Errors about a recipe: the file and line of the key, what was expected, and the known key it looks like."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from capsulekit.errors import CapsulekitError


def unknown(path: Path, text: str, section: str, key: str, known: list[str], kind: str) -> CapsulekitError:
    """The error for a key or section that does not exist."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"{path}:{line_of(text, section, key)}"
    inside = f" in [{_shown(section)}]" if kind == "key" else ""
    hint = f"did you mean {near[0]}?" if near else "known here: " + ", ".join(sorted(known))
    return CapsulekitError(f"{where}: unknown {kind} {_shown(key)}{inside}", hint=hint)


def wrong(path: Path, text: str, section: str, key: str, expected: str, got: object = None) -> CapsulekitError:
    """The error for a value that is not what its key takes."""
    shown = f", not {_shown(repr(got))}" if got is not None else ""
    where = f"[{_shown(section)}] " if section and section != key else ""
    return CapsulekitError(f"{path}:{line_of(text, section, key)}: {where}{_shown(key)} must be {expected}{shown}")


def _shown(text: str) -> str:
    """Safe to print on one line, and short."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 80 else clean[:79] + "…"


def line_of(text: str, section: str, key: str) -> int:
    """The line a key stands on: tomlkit keeps no positions, so look for it below its section's header.

    ``section`` is "" for a key above all sections, and the key itself when the section is what is meant. A key that
    is written some other way (an inline table) is found by its section, else line 1 is as near as it gets.
    """
    assigned = re.compile(rf'\s*["\']?{re.escape(key)}["\']?\s*[=.]')
    dotted = re.compile(rf"\s*{re.escape(section)}\s*[=.]") if section else assigned
    current, best = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*(.*?)\s*\]+\s*(#.*)?$", line):
            current = re.sub(r"\s*\.\s*", ".", header[1], count=1).replace("'", '"')
            if section in (current, current.strip('"')) and (not best or section == key):
                best = number
                if section == key:
                    return number
            if section == key and current.startswith((f"{section}.", f'"{section}"', f'files."{key}"')):
                return number
        elif section in (current, current.strip('"')) and assigned.match(line):
            return number
        elif not current and not best and dotted.match(line):
            best = number
    return best or 1
