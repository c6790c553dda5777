"""What a node says of its root: two lists, of what its modules made at boot and of what was written since.

Whoever is root on a node may send anything: every byte is checked, and nothing is taken that the agent would not write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from capsulekit.errors import CapsulekitError
from provisioner.trees.entry import DIGEST, FILE, GONE, LINK, NOTHING, Entry, escape, unescape

MOST_BYTES = 4 << 20  # the agent ends at 3.5 MB
MOST_PATH = 3 * 4096  # bytes; a path ends at 4096, each of which may be escaped
SECTIONS = ("node", "upper")
_WORD = r"(?:[!-$&-~]|%[0-9A-F]{2})+"
_LINE = re.compile(rf"({_WORD}) ([dflbcpsx]) ([0-7]{{4}}) ([0-9]{{1,10}}) ([0-9]{{1,10}}) ([0-9]{{1,18}}) ({_WORD}|-)")
_DEVICE = re.compile(r"[0-9]{1,10}:[0-9]{1,10}")


@dataclass(frozen=True)
class NodeTree:
    """Path (escaped) → entry: of the node's own layer, and of what was written since. ``cut``: it is not all."""

    node: dict[str, Entry]
    upper: dict[str, Entry]
    cut: bool = False


def parse_report(data: bytes) -> NodeTree:
    """Read what a node sent. Raises CapsulekitError saying what is wrong, and where, in plain words."""
    if len(data) > MOST_BYTES:
        raise CapsulekitError(f"the list of files is longer than {MOST_BYTES} bytes")
    lines = _lines(data)
    if next(lines, None) != "capsulekit-tree 1":
        raise CapsulekitError("the list of files does not begin as it should")
    found: dict[str, dict[str, Entry]] = {}
    last = ""
    for number, line in enumerate(lines, 2):
        if last:
            raise CapsulekitError(f"the list of files goes on after its end, line {number}")
        if line in ("end", "cut"):
            last = line
        elif " " not in line:
            if len(found) == len(SECTIONS) or line != SECTIONS[len(found)]:
                raise CapsulekitError(f"the list of files has no such part, line {number}")
            found[line], before = {}, ""
        elif not found:
            raise CapsulekitError(f"the list of files has a path before its parts, line {number}")
        else:
            entry = _entry(line, number)
            if entry.key <= before:
                raise CapsulekitError(f"the list of files is not in order, line {number}")
            before = entry.key
            found[next(reversed(found))][entry.path] = entry
    if not last or (last == "end" and len(found) < len(SECTIONS)):
        raise CapsulekitError("the list of files breaks off")
    return NodeTree(found.get("node", {}), found.get("upper", {}), last == "cut")


def _lines(data: bytes) -> Iterator[str]:
    if not data.endswith(b"\n"):
        raise CapsulekitError("the list of files breaks off")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise CapsulekitError("the list of files is not plain text") from None
    yield from text[:-1].split("\n")


def _entry(line: str, number: int) -> Entry:
    match = _LINE.fullmatch(line) if len(line) < MOST_PATH * 2 + 200 else None
    if match is None or not _is_path(match[1]):
        raise CapsulekitError(f"the list of files has a line that is none, line {number}")
    path, kind, mode, uid, gid, size, what = match.groups()
    good = {FILE: what == NOTHING or DIGEST.fullmatch(what), LINK: True, "b": _DEVICE.fullmatch(what),
            "c": _DEVICE.fullmatch(what)}.get(kind, what == NOTHING)  # fmt: skip
    if not good or len(path) > MOST_PATH or (kind != FILE and size != "0") or max(int(uid), int(gid)) >= 1 << 32:
        raise CapsulekitError(f"the list of files has a line that is none, line {number}")
    return Entry(path, GONE if kind == GONE else kind, int(mode, 8), int(uid), int(gid), int(size), what)


def _is_path(text: str) -> bool:
    """Whether it is spelled as the agent would: relative, no empty part, no dots, nothing escaped in vain, no NUL."""
    raw = unescape(text)
    return escape(raw) == text and b"\0" not in raw and not {b"", b".", b".."} & set(raw.split(b"/"))
