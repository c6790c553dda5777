"""One grammar for globs over a root's paths, used by the normaliser's table, the boot closure and hybridize.

A glob is anchored at the root. ``*`` and ``?`` match within one name, hidden ones too, ``**`` across folders (``**/``
also no folder at all), ``[…]`` and ``[!…]`` one character of a set; ``[*]`` is a literal star.
"""

from __future__ import annotations

import re

from capsulekit.errors import CapsulekitError


def regex(glob: str) -> str:
    """The pattern of a glob, without the leading ``/``, for re.fullmatch; raises CapsulekitError for a bad one."""
    out, at = [], 0
    while at < len(glob):
        part, length = _one(glob, at)
        out.append(part)
        at += length
    return "".join(out)


def _one(glob: str, at: int) -> tuple[str, int]:
    """The pattern of what stands at ``at``, and how many characters that is."""
    if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
        return "(?:[^/]+/)*", 3
    if glob.startswith("**", at):
        return ".*" if at and glob[at - 1] != "/" else ".+", 2
    if glob[at] == "*":
        return "[^/]*", 1
    if glob[at] == "?":
        return "[^/]", 1
    if glob[at] == "[":
        return _set(glob, at)
    return re.escape(glob[at]), 1


def _set(glob: str, at: int) -> tuple[str, int]:
    """A set of characters: the first may be ``]``; none of them may be ``/``."""
    start = at + 1 + glob.startswith("!", at + 1)
    end = glob.find("]", start + 1)
    inside = glob[start:end]
    if end < 0 or "/" in inside:
        raise CapsulekitError(f"the glob /{glob} has a [ without its ]", hint="write [[] for the character itself")
    literal = re.sub(r"([\\^\[\]&~|])", r"\\\1", inside)
    pattern = f"(?!/)[{'^' if start > at + 1 else ''}{literal}]"
    try:
        re.compile(pattern)
    except re.error:
        raise CapsulekitError(f"the glob /{glob} has a range that runs backwards: [{inside}]") from None
    return pattern, end + 1 - at


def anchored(glob: str) -> str:
    """An author's glob as the rest of this package writes it: without slashes at its ends. Raises CapsulekitError.

    What it names must be a path as the root spells it: full, with no empty, ``.`` or ``..`` part.
    """
    parts = glob.rstrip("/").split("/")
    if parts[0] or len(parts) < 2 or {"", ".", ".."} & set(parts[1:]):
        raise CapsulekitError(f"the glob {glob!r} is not a path from the root", hint="such as /usr/share/doc")
    found = "/".join(parts[1:])
    regex(found)
    return found
