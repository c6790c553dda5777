"""One recipe file as it was read, and errors about it: file and line, key, what was expected, the nearest known key."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.lines import Keys, positions

Table = dict[str, Any]
# Bytes. A recipe names things; what is larger than this is no recipe, and is not even parsed.
MAX_RECIPE = 1 << 20


@dataclass(frozen=True)
class Document:
    """``where`` is the file as errors show it, ``folder`` where its paths start (None: it may name no other file)."""

    where: str
    folder: Path | None
    text: str
    table: Table

    def at(self, keys: Keys) -> str:
        """FILE:LINE of a key; of what holds it, when the key itself is not written out."""
        lines = positions(self.text)
        while keys and keys not in lines:
            keys = keys[:-1]
        return f"{self.where}:{lines.get(keys, 1)}"

    def wrong(self, keys: Keys, expected: str, got: object = None) -> CapsulekitError:
        """The error for a value that is not what its key takes."""
        shown = f", not {printable(repr(got))}" if got is not None else ""
        return CapsulekitError(f"{self.at(keys)}: {spelled(keys)} must be {expected}{shown}")

    def unknown(self, keys: Keys, known: Iterable[str], kind: str) -> CapsulekitError:
        """The error for a key, a section or a variable that does not exist."""
        *above, key = keys
        inside = f" in {spelled((*above, ''))}".rstrip() if above and kind == "key" else ""
        return CapsulekitError(
            f"{self.at(keys)}: unknown {kind} {printable(str(key))}{inside}", hint=nearest(str(key), known)
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """A way out for a name that is not known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "known here: " + (", ".join(known) or "none")


def spelled(keys: Keys) -> str:
    """A key as a reader of the recipe finds it: ``[capsule] name``, ``[files."/etc/motd"] mode``."""
    names = [k for k in keys if isinstance(k, str)]
    if len(names) < 2:
        return printable(names[0] if names else "")
    section, *middle, key = names
    header = ".".join([section, *(m if re.fullmatch(r"[A-Za-z0-9_-]+", m) else f'"{m}"' for m in middle)])
    return f"[{printable(header)}] {printable(key)}"


def printable(text: str) -> str:
    """Safe to print on one line, and short."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 80 else clean[:79] + "…"


def parse(where: str, folder: Path | None, text: str) -> Document:
    """Parse TOML; raises CapsulekitError with the line where it stops being TOML."""
    try:
        return Document(where, folder, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        said = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        line = (said[2] if said else None) or text.rstrip("\n").count("\n") + 1
        raise CapsulekitError(f"{where}:{line}: not valid TOML: {printable(said[1] if said else str(error))}") from None
    except RecursionError:
        raise CapsulekitError(f"{where}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise CapsulekitError(f"{where}: not valid TOML: {printable(str(error))}") from None


def read(path: Path, where: str) -> Document:
    """Read a recipe file; raises CapsulekitError."""
    try:
        data = read_regular(path, MAX_RECIPE)
    except FileNotFoundError:
        raise CapsulekitError(f"there is no recipe {where}", hint="make one with: capsulekit new") from None
    except OSError as error:
        raise CapsulekitError(f"{where}: the recipe cannot be read: {error.strerror}") from None
    if data is None:
        raise CapsulekitError(
            f"{where}: the recipe is larger than {MAX_RECIPE >> 20} MiB",
            hint="name large files by source, or put them into a package",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CapsulekitError(f"{where}:{line}: the recipe cannot be read: it is not UTF-8 text") from None
    return parse(where, path.parent, text)


def read_regular(path: Path, limit: int) -> bytes | None:
    """A regular file's bytes, or None when it has more than ``limit``; never waits. Raises OSError."""
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # Should it become a pipe without a writer just now, open() does not block for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else None
