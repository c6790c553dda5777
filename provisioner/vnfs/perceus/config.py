"""A Perceus capsule's small files, read as data: its ``config`` is shell, and is never run here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError

KEYS = ("KERNEL", "KERNEL_ARGS")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Z_]+)=(.*)")
_KERNEL = re.compile(r"(?:.*/)?vmlinuz-([A-Za-z0-9][A-Za-z0-9._+-]*)")
# NAME-VERSION.STATE.ARCH.vnfs by convention: centos-5.1-1.stateless.x86_64.vnfs.
_STEM = re.compile(r"(?P<rest>.+?)(?:\.(?:stateless|stateful))?(?:\.(?:x86_64|amd64|i[3-6]86|ia64|ppc(?:64)?|noarch))?")


@dataclass(frozen=True)
class Config:
    """What we take: the release of its kernel (None: not told), its kernel arguments, and what could not be read."""

    kernel: str | None = None
    kernel_args: str = ""
    unread: tuple[str, ...] = ()


def read_config(data: bytes) -> Config:
    """The assignments of plain values; one that a shell would have to work out is named in ``unread``."""
    said: dict[str, str] = {}
    unread: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        found = _LINE.fullmatch(line)
        if not found or found[1] not in KEYS:
            continue
        value = _plain(found[2])
        # The last one counts, as in a shell.
        said.pop(found[1], None)
        unread.pop(found[1], None)
        if value is None:
            unread[found[1]] = line.strip()[:200]
        else:
            said[found[1]] = value
    kernel = _KERNEL.fullmatch(said.get("KERNEL", ""))
    return Config(kernel[1] if kernel else None, said.get("KERNEL_ARGS", ""), tuple(ascii(v) for v in unread.values()))


def _plain(text: str) -> str | None:
    """The value of an assignment, or None when it is more than text."""
    if "`" in text or "$" in text:
        return None
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return None
    value = words[0] if words else ""
    return value if len(words) <= 1 and value.isprintable() else None


def read_hybridize(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(its paths as globs of ours, lines that are none), in their order."""
    globs: list[str] = []
    wrong: list[str] = []
    for line in data.decode("utf-8", "replace").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        good = text.startswith("/") and text.isprintable() and ".." not in text.split("/") and len(text) > 1
        (globs if good else wrong).append(text if good else ascii(text[:200]))
    return tuple(dict.fromkeys(globs)), tuple(wrong)


def read_name(file: str) -> tuple[str, str]:
    """(name, version) for the converted capsule, from the file's name. Raises CapsulekitError when it gives none."""
    stem = file.removesuffix(".vnfs")
    found = _STEM.fullmatch(stem)
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", found["rest"] if found else stem).strip("-._")
    name, dash, version = text.rpartition("-")
    if not dash or not version[:1].isdigit():
        name, version = text, "1"
    if not name:
        raise CapsulekitError(f"{file!r} gives no name for a capsule", hint="rename the file to NAME-VERSION.vnfs")
    return name[:80], version[:20]
