"""Two layers, path by path: what differs, and in what.

``python -m capsulekit.image.compare ONE TWO OUT``: the half that needs both unpacked (xattrs.sh starts it): writes the
paths whose extended attributes differ to OUT, as a JSON list.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capsulekit.image.listing import Entry, Layer, list_digested
from capsulekit.run import PLAIN, failed, run_apart

SCRIPT = Path(__file__).parents[1] / "namespace" / "xattrs.sh"
PURPOSE = "compare two layers"


@dataclass(frozen=True)
class Difference:
    """A path (relative to the root, bytes that are no UTF-8 as surrogates) and what of it differs, in words.

    ``what`` is "missing" (in the second), "new", "type", or some of content, mode, owner, hard links, xattr.
    """

    path: str
    what: tuple[str, ...]


def compare(one: Layer, two: Layer, work: Path) -> list[Difference]:
    """Every path that differs, sorted; ``work`` is an empty scratch folder. Raises TrustError for a damaged layer."""
    first, second = list_digested(one), list_digested(two)
    found = {path: what for path in first.keys() | second.keys() if (what := _what(first, second, path))}
    for path in _other_attributes(one, two, work):
        if path in first and path in second:
            found[path] = [*found.get(path, []), "xattr"]
    return [Difference(path, tuple(what)) for path, what in sorted(found.items())]


def _what(first: dict[str, Entry], second: dict[str, Entry], path: str) -> list[str]:
    one, two = first.get(path), second.get(path)
    if one is None or two is None:
        return ["missing" if two is None else "new"]
    if one.kind != two.kind:
        return ["type"]
    pairs = {
        "content": ((one.digest, one.target), (two.digest, two.target)),
        "mode": (one.mode, two.mode),
        "owner": ((one.uid, one.gid), (two.uid, two.gid)),
        "hard links": (one.hard, two.hard),
    }
    return [what for what, (here, there) in pairs.items() if here != there]


def _other_attributes(one: Layer, two: Layer, work: Path) -> list[str]:
    """No listing of unsquashfs 4.5 shows attributes, so both layers are unpacked, as root of their own namespace."""
    out = work / "attributes.json"
    layers = [str(word) for layer in (one, two) for word in (layer.image.absolute(), layer.offset)]
    argv: list[str | Path] = ["sh", SCRIPT, work, sys.executable, out, *layers]
    with (work / "log").open("wb") as log:
        status = run_apart(argv, purpose=PURPOSE, env={**PLAIN, "LC_ALL": "C.UTF-8"}, cwd=work, stdout=log, stderr=log)
    if status != 0:
        raise failed(argv, PURPOSE, status, (work / "log").read_bytes())
    return [str(path) for path in json.loads(out.read_text())]


def attributes(root: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every path below ``root`` that has extended attributes, and what they are."""
    for folder, folders, files in os.walk(root):
        for name in (".", *folders, *files) if folder == str(root) else (*folders, *files):
            path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 (names may be no UTF-8)
            held = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            if held:
                yield os.path.relpath(path, root).removeprefix("."), held


if __name__ == "__main__":
    trees = [dict(attributes(Path(tree))) for tree in sys.argv[1:3]]
    differing = sorted(p for p in trees[0].keys() | trees[1].keys() if trees[0].get(p) != trees[1].get(p))
    Path(sys.argv[3]).write_text(json.dumps(differing))
