"""Many names in few words, as selectors spell them: n0000 … n0999 is n[0000-0999]."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(.*?)([0-9]+)")


def fold(names: Iterable[str]) -> str:
    """The names, those that differ in their last number only as ranges, joined by commas; in order."""
    plain: list[str] = []
    numbers: dict[tuple[str, int], list[int]] = {}
    for name in dict.fromkeys(names):
        found = _NUMBERED.fullmatch(name)
        if found is None:
            plain.append(name)
            continue
        # A number is padded or it is not: n9 and n10 are of one kind, n09 and n9 are not.
        digits = found[2]
        width = len(digits) if digits[0] == "0" and len(digits) > 1 else 0
        numbers.setdefault((found[1], width), []).append(int(digits))
    _join_padded(numbers)
    folded = [_range(prefix, width, sorted(found)) for (prefix, width), found in numbers.items()]
    return ",".join(sorted([*plain, *folded]))


def _join_padded(numbers: dict[tuple[str, int], list[int]]) -> None:
    """n0999 and n1000 are of one kind: without a zero in front, a number as long as the padded ones is one of them."""
    for prefix, width in [key for key in numbers if key[1]]:
        loose = numbers.get((prefix, 0), [])
        fitting = [number for number in loose if len(str(number)) == width]
        numbers[prefix, width] += fitting
        rest = [number for number in loose if len(str(number)) != width]
        if loose and not rest:
            del numbers[prefix, 0]
        elif loose:
            numbers[prefix, 0] = rest


def _range(prefix: str, width: int, numbers: list[int]) -> str:
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    texts = [f"{one:0{width}d}" if one == two else f"{one:0{width}d}-{two:0{width}d}" for one, two in parts]
    return prefix + (texts[0] if len(numbers) == 1 else f"[{','.join(texts)}]")
