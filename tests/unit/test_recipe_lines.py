"""The line that an error names is the line the author has to look at."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from capsulekit.recipe.lines import positions

TEXT = '''# a comment with [brackets] and a = 1
extends = ["a.toml",
  "b.toml",   # second
]
[capsule]
name = "x" # [files]
'quoted key' = 3
a.b . "c" = { d = 1, e = [2, {f = 3}] }

[files."/etc/mo\\u0074d"]
content = """
[packages]
include = ["no"] """
mode = '0644'
[packages]
include = [
  "bash",
  # a comment, with a comma
  "vim", 'less',
  """multi
line""", "last",
]
when = 1979-05-27 07:32:00
[[scripts.rootfs]]
name = "one"
[[scripts.rootfs]]
name = "two"
text = \'\'\'
#!/bin/sh
name = "no"
\'\'\'
end = true'''

LINES = {
    ("extends",): 2, ("extends", 0): 2, ("extends", 1): 3, ("capsule",): 5, ("capsule", "name"): 6,
    ("capsule", "quoted key"): 7, ("capsule", "a", "b", "c"): 8, ("capsule", "a", "b", "c", "e", 1, "f"): 8,
    ("files", "/etc/motd"): 10, ("files", "/etc/motd", "content"): 11, ("files", "/etc/motd", "mode"): 14,
    ("packages",): 15, ("packages", "include"): 16, ("packages", "include", 0): 17, ("packages", "include", 1): 19,
    ("packages", "include", 2): 19, ("packages", "include", 3): 20, ("packages", "include", 4): 21,
    ("packages", "when"): 23, ("scripts", "rootfs", 0, "name"): 25, ("scripts", "rootfs", 1): 26,
    ("scripts", "rootfs", 1, "name"): 27, ("scripts", "rootfs", 1, "text"): 28, ("scripts", "rootfs", 1, "end"): 32,
}  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_key_and_item_is_found_on_its_line(end: str) -> None:
    tomllib.loads(TEXT)
    found = positions(TEXT.replace("\n", end))
    assert {keys: found.get(keys) for keys in LINES} == LINES
    assert not {keys for keys in found if "no" in keys}, "what stands inside a string is no key"


VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), st.text("ab\"'\\\n[]{}=#,. é", max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab.\"' [", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("xy.\"'# [", min_size=1, max_size=4), VALUES, max_size=4))
def test_every_key_of_any_text_is_found(table: dict[str, Any]) -> None:
    text = tomlkit.dumps(table)
    found = positions(text)
    assert tomllib.loads(text) == table

    def walk(value: Any, keys: tuple[str | int, ...]) -> None:
        assert not keys or keys in found, (keys, text)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            walk(inner, (*keys, key))

    walk(table, ())
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())


@given(st.text("a=[]{}\"'#.,\n\\ ", max_size=40))
def test_a_text_that_is_no_toml_does_no_harm(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in positions(text).values())
