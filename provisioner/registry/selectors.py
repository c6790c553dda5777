"""The one grammar that names nodes: n00[05-20], n0*00, a,b!c&@group^d; pinned by tests/unit/test_selectors.py.

Order: operators are split off, brackets expanded, what holds ``*`` or ``?`` matches registered names (anchored,
case-sensitive) and everything else is literal; then the sets are combined from left to right, as in ClusterShell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from capsulekit.errors import CapsulekitError, UsageError
from provisioner.registry.model import Node
from provisioner.registry.names import parse_mac

OPERATORS = ",!&^"
# More names than any site has: what a slip like n[0-99999999] would expand to.
MOST_NAMES = 100_000
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:/(\d+))?)?")


@dataclass(frozen=True)
class Selection:
    """The nodes that words named, in the order of their host names, and every word or name that matched nothing."""

    nodes: tuple[Node, ...]
    unmatched: tuple[str, ...]


def select(words: Sequence[str], nodes: Sequence[Node], by_mac: bool = False) -> Selection:
    """Evaluate each word against ``nodes`` and unite the results. Raises UsageError for a malformed word.

    A literal name that is not registered is unmatched wherever it stands; so is a pattern that fits no name, an
    unknown @group, and a word whose set comes out empty.
    """
    chosen, unmatched = _united(words, _Site(nodes, by_mac))
    return Selection(tuple(n for n in nodes if n.nodeid in chosen), unmatched)


def _united(words: Sequence[str], site: _Finder) -> tuple[set[str], tuple[str, ...]]:
    """What all words stand for together, and what in them is unknown, each once."""
    chosen: set[str] = set()
    unmatched: list[str] = []
    for word in words:
        result, missing = _evaluate(word, site)
        chosen |= result
        unmatched += missing or ([] if result else [word])
    return chosen, tuple(dict.fromkeys(unmatched))


@dataclass(frozen=True)
class Names:
    """The names (of groups, say) that words named, in their order, and every word or name that matched nothing."""

    names: tuple[str, ...]
    unmatched: tuple[str, ...]


def select_names(words: Sequence[str], names: Sequence[str]) -> Names:
    """The same grammar over plain names; ``@`` before one changes nothing. Raises UsageError for a malformed word."""
    known = _Plain(names)
    chosen, unmatched = _united(words, known)
    return Names(tuple(name for name in names if name in chosen), unmatched)


class _Finder(Protocol):
    """Knows what a literal name or a pattern stands for."""

    def find(self, name: str) -> set[str]: ...


class _Plain:
    """Names that stand for themselves."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {name: name for name in names}

    def find(self, name: str) -> set[str]:
        """The names that ``name``, a name or a pattern, stands for."""
        return set(_fitting(name.removeprefix("@"), self.names))


class _Site:
    """The registered names and groups, each with the NodeIDs it stands for."""

    def __init__(self, nodes: Sequence[Node], by_mac: bool) -> None:
        self.by_mac = by_mac
        self.names: dict[str, str] = {}
        self.groups: dict[str, set[str]] = {}
        for node in nodes:
            names = (node.nodeid,) if by_mac else (node.hostname, node.name)
            self.names |= dict.fromkeys(names, node.nodeid)
            self.groups.setdefault(node.groupname, set()).add(node.nodeid)

    def find(self, name: str) -> set[str]:
        """The nodes a literal name or a pattern stands for."""
        if name.startswith("@"):
            return {mac for group in _fitting(name[1:], self.groups) for mac in self.groups[group]}
        names = _fitting(self._spelling(name), self.names)
        # A pattern without a dot is about hosts only: "*w" must not fit n0000.new.
        if "." not in name and _is_pattern(name):
            names = [n for n in names if "." not in n]
        return {self.names[n] for n in names}

    def _spelling(self, name: str) -> str:
        if not self.by_mac:
            return name
        try:
            return parse_mac(name)
        except CapsulekitError:
            return name.upper().replace("-", ":")


def _evaluate(word: str, site: _Finder) -> tuple[set[str], list[str]]:
    """The NodeIDs of one word, and what in it is not registered."""
    result: set[str] = set()
    missing: list[str] = []
    for operator, operand in _split(word):
        found, unknown = _operand(operand, site)
        missing += unknown
        if operator == ",":
            result |= found
        elif operator == "!":
            result -= found
        elif operator == "&":
            result &= found
        else:
            result ^= found
    return result, missing


def _operand(text: str, site: _Finder) -> tuple[set[str], list[str]]:
    found: set[str] = set()
    missing: list[str] = []
    for name in _expand_some(text):
        got = site.find(name)
        found |= got
        if not got:
            missing.append(name)
    # A bracket before a star asks for whatever fits: n[0-9]* is answered when one of the ten is.
    if found and _is_pattern(text):
        missing = []
    return found, missing


def _split(word: str) -> Iterator[tuple[str, str]]:
    """(operator, operand) of a word, the first operand being joined to nothing. Operators in brackets are text."""
    operator, operand, depth = ",", "", 0
    for char in word:
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            raise UsageError(f"selector {word!r}: brackets do not match")
        if depth == 0 and char in OPERATORS:
            if not operand:
                raise UsageError(f"selector {word!r}: nothing before {char!r}")
            yield operator, operand
            operator, operand = char, ""
        else:
            operand += char
    if depth:
        raise UsageError(f"selector {word!r}: brackets do not match")
    if not operand and word:
        raise UsageError(f"selector {word!r}: nothing after {operator!r}")
    yield operator, operand


def _expand_some(text: str) -> list[str]:
    names: list[str] = []
    for name in expand(text):
        names.append(name)
        if len(names) > MOST_NAMES:
            raise UsageError(f"selector {text!r} stands for more than {MOST_NAMES} names")
    return names


def expand(text: str) -> Iterator[str]:
    """Every name of a text with brackets, in order: r[1-2]n[08-10] gives r1n08, r1n09, … Raises UsageError."""
    head, bracket, rest = text.partition("[")
    if not bracket:
        yield text
        return
    body, _, tail = rest.partition("]")
    for item in body.split(","):
        for number in _numbers(item, text):
            for end in expand(tail):
                yield head + number + end


def _numbers(item: str, text: str) -> Iterator[str]:
    """05-20, 8-11/2 or 7 as texts. The padding follows the text: the width of the longest bound with a leading 0."""
    match = _RANGE.fullmatch(item)
    if not match:
        raise UsageError(f"selector {text!r}: {item!r} is not a number or a range like 05-20 or 0-30/2")
    first, last, step = match[1], match[2] or match[1], int(match[3] or 1)
    if int(first) > int(last) or step == 0:
        raise UsageError(f"selector {text!r}: the range {item} holds nothing")
    width = max((len(bound) for bound in (first, last) if bound[0] == "0"), default=0)
    for number in range(int(first), int(last) + 1, step):
        yield str(number).zfill(width)


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def _fitting(name: str, known: dict[str, str] | dict[str, set[str]]) -> list[str]:
    if not _is_pattern(name):
        return [name] if name in known else []
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", name))
    # Atomic: what stands between two stars fits where it first does, and many stars cost no more than a few.
    inner = "".join(f"(?>.*?{part})" for part in rest[:-1])
    pattern = re.compile(first + (f"{inner}.*{rest[-1]}" if rest else ""))
    return [n for n in known if pattern.fullmatch(n)]
