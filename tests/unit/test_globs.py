"""The grammar of globs, pinned: what each matches, and which are refused."""

from __future__ import annotations

import re

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.rootfs.globs import anchored, regex

MATCHES = [
    ("usr/*", "usr/a", True),
    ("usr/*", "usr/.a", True),
    ("usr/*", "usr/a/b", False),
    ("usr/*", "x/usr/a", False),
    ("usr/**", "usr/a/b", True),
    ("usr/**", "usr", False),
    ("**/x", "x", True),
    ("**/x", "a/b/x", True),
    ("**/x", "a/bx", False),
    ("a/**/x", "a/x", True),
    ("a/**/x", "a/b/c/x", True),
    ("a/**/x", "ab/x", False),
    ("a**x", "ab/c/x", True),
    ("a?c", "abc", True),
    ("a?c", "a/c", False),
    ("a/[!b]c", "a/bc", False),
    ("a/[!b]c", "a/xc", True),
    ("a[!b]c", "a/c", False),
    ("a[--0]c", "a/c", False),
    ("a/[a-c]", "a/b", True),
    ("a/[]]", "a/]", True),
    ("a/[!]]", "a/]", False),
    ("a/[[]", "a/[", True),
    ("a/[*]", "a/*", True),
    ("a/[*]", "a/b", False),
    ("a/[b^]", "a/^", True),
    ("a/[\\]", "a/\\", True),
    ("a.b", "axb", False),
    ("a/*", "a/new\nline", True),
    ("caf\udce9/*", "caf\udce9/x", True),
]


@pytest.mark.parametrize(("glob", "path", "matches"), MATCHES)
def test_a_glob_matches_what_it_says(glob: str, path: str, matches: bool) -> None:
    assert bool(re.fullmatch(regex(glob), path, re.DOTALL)) is matches


@pytest.mark.parametrize(
    ("glob", "kept"), [("/usr/share/doc", "usr/share/doc"), ("/usr/share/doc/", "usr/share/doc"), ("/**/x", "**/x")]
)
def test_an_authors_glob_starts_at_the_root(glob: str, kept: str) -> None:
    assert anchored(glob) == kept


@pytest.mark.parametrize("glob", ["", "/", "//", "usr", "./usr", "/usr//a", "/usr/../etc", "/usr/./a"])
def test_a_glob_that_is_no_path_from_the_root_is_refused(glob: str) -> None:
    with pytest.raises(CapsulekitError, match="is not a path from the root"):
        anchored(glob)


@pytest.mark.parametrize(
    ("glob", "why"),
    [("/a/[x", "without its ]"), ("/a/[x/y]", "without its ]"), ("/[z-a]", "range that runs backwards")],
)
def test_a_broken_set_is_refused(glob: str, why: str) -> None:
    with pytest.raises(CapsulekitError, match=f"the glob {re.escape(glob)} has a .*{why}"):
        anchored(glob)
