"""Lists of files: nothing that nodes send is believed, layers stack as overlayfs does, differences are by content."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsulekit.errors import CapsulekitError
from provisioner.folding import fold
from provisioner.registry.selectors import expand
from provisioner.trees.compare import compare
from provisioner.trees.entry import FOLDER, GONE, OPAQUE, Entry, escape, key_of, parse, shown, unescape
from provisioner.trees.generation import Between, Tree, differing
from provisioner.trees.layers import stacked
from provisioner.trees.report import MOST_BYTES, NodeTree, parse_report

SUM = "ab" * 32


def file(path: str, what: str = SUM, **more: object) -> Entry:
    return replace(Entry(path, "f", 0o644, 0, 0, 1, what), **more)  # type: ignore[arg-type]


def folder(path: str, kind: str = FOLDER) -> Entry:
    return Entry(path, kind, 0o755, 0, 0)


def gone(path: str) -> Entry:
    return Entry(path, GONE, 0, 0, 0)


def tree(path: Path, *entries: Entry) -> Tree:
    ordered = sorted(entries, key=lambda one: one.key)
    path.write_text("".join(f"{one.line()}\n" for one in ordered))
    return Tree(path)


# --- paths and lines


@given(st.lists(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw and b"/" not in raw), min_size=1))
def test_any_path_is_one_word_and_comes_back(parts: list[bytes]) -> None:
    raw = b"/".join(parts)
    text = escape(raw)
    assert unescape(text) == raw and text.isascii() and text.isprintable() and " " not in text
    entry = Entry(text, "f", 0o4755, 1, 2, 3, SUM, "-")
    assert parse(entry.line()) == entry


@given(st.lists(st.text("ab-/", min_size=1, max_size=5)))
def test_a_folder_sorts_before_all_in_it_and_nothing_stands_between(paths: list[str]) -> None:
    ordered = sorted({p.strip("/") for p in paths if "//" not in p and p.strip("/")}, key=key_of)
    for path in ordered:
        inside = [number for number, one in enumerate(ordered) if one == path or one.startswith(path + "/")]
        assert inside == list(range(inside[0], inside[0] + len(inside))) and ordered[inside[0]] == path


def test_what_is_shown_never_obeys() -> None:
    assert shown("etc/a%20b%C3%A9") == "/etc/a bé"
    assert shown("etc/%1B[2J") == "/etc/%1B[2J"


# --- what nodes send

GOOD = f"capsulekit-tree 1\nnode\netc d 0755 0 0 0 -\netc/a%20b f 4755 1 2 3 {SUM}\nupper\nd b 0600 0 0 0 8:1\n"
GOOD += "l l 0777 0 0 0 to%20gone\nx x 0000 0 0 0 -\nend\n"


def test_a_list_is_read() -> None:
    found = parse_report(GOOD.encode())
    assert found.node["etc/a%20b"] == Entry("etc/a%20b", "f", 0o4755, 1, 2, 3, SUM)
    assert [one.kind for one in found.upper.values()] == ["b", "l", "x"] and not found.cut
    assert parse_report(GOOD.replace("\nend\n", "\ncut\n").encode()).cut
    assert parse_report(b"capsulekit-tree 1\nnode\ncut\n").cut


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("capsulekit-tree 1", "capsulekit-tree 2"), ("node\n", ""), ("upper\n", ""), ("upper\n", "other\n"),
        ("end\n", ""), ("end\n", "end"), ("end\n", "end\nend\n"), ("end\n", "end\nx x 0000 0 0 0 -\n"),
        ("etc d", "/etc d"), ("etc d", "../etc d"), ("etc d", "./etc d"), ("etc d", "etc/ d"), ("etc d", "e//c d"),
        ("etc d", "%65tc d"), ("etc d", "e%2Fc d"), ("etc d", "e%00 d"), ("etc d", "e% d"), ("etc d", "%c3 d"),
        ("etc d", "é d"), ("etc d", "etc  d"), ("etc d", "etc q"), ("etc d", "etc D"), ("0755", "755"),
        ("0755", "9755"), ("0755 0 0 0", "0755 -1 0 0"), ("0755 0 0 0", "0755 4294967296 0 0"),
        ("0755 0 0 0", "0755 0 0 1"), ("0755 0 0 0 -", "0755 0 0 0 x"), (SUM, SUM[:-1]), (SUM, SUM.upper()),
        (" 3 ab", f" {10**19} ab"), ("8:1", "8"), ("8:1", "-"), ("to%20gone", "to gone"), ("to%20gone", ""),
        ("x x 0000 0 0 0 -", "x x 0000 0 0 0 - -"), ("\nx x", "\nl x"), ("\nx x", "\na x"), ("node", "node\nnode"),
        ("\nd b", "\n\nd b"), ("upper", "upper\0"), ("capsulekit-tree 1\n", ""), ("upper\n", "upper\nupper\n"),
        ("etc d", "a" * 20000 + " d"), ("node\n", "etc d 0755 0 0 0 -\nnode\n"),
    ],
)  # fmt: skip
def test_a_list_that_no_agent_writes_is_refused_as_a_whole(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(CapsulekitError, match="the list of files") as refused:
        parse_report(GOOD.replace(old, new, 1).encode())
    assert refused.value.message.isprintable() and len(refused.value.message) < 100


def test_a_list_has_an_end() -> None:
    with pytest.raises(CapsulekitError, match="longer than"):
        parse_report(b"x" * (MOST_BYTES + 1))


@given(st.binary(max_size=300))
def test_no_bytes_at_all_do_anything_else(data: bytes) -> None:
    for text in (data, GOOD.encode()[: len(data)] + data):
        with contextlib.suppress(CapsulekitError):
            assert isinstance(parse_report(text), NodeTree)


# --- layers


def stack(*layers: list[Entry]) -> list[str]:
    ordered = [iter(sorted(one, key=lambda entry: entry.key)) for one in layers]
    return [f"{one.path}:{one.kind}:{one.what[:2]}" for one in stacked(ordered)]


def test_layers_show_as_overlayfs_shows_them() -> None:
    low = [folder("a"), file("a/x"), folder("a/s"), file("a/s/y"), file("a-b"), folder("o"), file("o/1"), file("t"),
           folder("g"), file("g/in"), folder("n"), file("n/1")]  # fmt: skip
    middle = [gone("a/x"), folder("a"), folder("o", OPAQUE), file("o/2"), folder("t"), file("t/now"), gone("g"),
              file("n", "cd" * 32)]  # fmt: skip
    high = [folder("a"), file("a/x", "ef" * 32), folder("g"), file("g/new"), folder("n"), file("n/2")]
    assert stack(high, middle, low) == [
        "a:d:-", "a/s:d:-", "a/s/y:f:ab", "a/x:f:ef", "a-b:f:ab", "g:d:-", "g/new:f:ab", "n:d:-", "n/2:f:ab", "o:d:-",
        "o/2:f:ab", "t:d:-", "t/now:f:ab",
    ]  # fmt: skip


def test_an_acl_gives_the_mode_that_it_has_on_a_node() -> None:
    from capsulekit.edit.acls import effective

    lists = [b"f\taccess\tu::rwx,u:5:r--,g::---,m::r--,o::---\n"]
    (one,) = stacked([iter([file("f", attrs="-")])], effective(lists))
    assert one.mode == 0o740 and one.attrs not in ("", "-")


# --- the file


def test_any_path_of_a_tree_is_found_and_no_other(tmp_path: Path) -> None:
    names = ["".join(some) for size in (1, 2, 3) for some in itertools.product("ab-", repeat=size)]
    entries = [folder(name) for name in names] + [file(f"{name}/in") for name in names]
    with tree(tmp_path / "tree", *entries) as found:
        assert all(found.get(one.path) == one for one in entries)
        assert all(found.get(path) is None for path in ("", "c", "a/", "a/i", "a/in/x", "aaaa", "0", "~"))
        assert [one.path for one in found.below("a")] == ["a/in"] and list(found.below("zz")) == []
        assert [one.path for one in found] == sorted((one.path for one in entries), key=key_of)
    with tree(tmp_path / "empty") as found:
        assert found.get("a") is None and list(found) == []


def test_what_differs_between_two_trees_is_kept_on_the_disk(tmp_path: Path) -> None:
    old = [file("a"), file("b"), file("c", mode=0o600), file("d", attrs="-"), file("e")]
    new = [file("b", "cd" * 32), file("c"), file("d", attrs="12"), file("e"), file("f")]
    between = Between(lambda: differing(old, new))
    assert list(between) == list(between) == ["a", "b", "c", "d", "f"]
    between.close()


# --- nodes


def seen(found: NodeTree, under: Tree, target: Tree, *, deep: bool = False) -> dict[str, str]:
    between = list(differing(under, target))
    return {
        one.path: one.kind + "*" * one.edited + "m" * one.module
        for one in compare(found, under, target, between, deep=deep)
    }


def node(upper: list[Entry], own: list[Entry] | None = None) -> NodeTree:
    return NodeTree({one.path: one for one in own or []}, {one.path: one for one in upper})


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Tree]:
    with tree(tmp_path / "old", folder("etc"), file("etc/a"), file("etc/b"), folder("etc/d"), file("etc/d/1"),
              file("etc/m")) as made:  # fmt: skip
        yield made


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Tree]:
    with tree(tmp_path / "new", folder("etc"), file("etc/a", "cd" * 32), folder("etc/d"), file("etc/d/1"),
              file("etc/m"), file("etc/n")) as made:  # fmt: skip
        yield made


def test_a_node_is_compared_by_content(old: Tree) -> None:
    assert seen(node([folder("etc"), file("etc/a")]), old, old) == {}, "copied up, and the same"
    assert seen(node([file("etc/a", "ee" * 32)]), old, old) == {"etc/a": "changed*"}
    assert seen(node([file("etc/a", mode=0o600)]), old, old) == {"etc/a": "mode or owner*"}
    assert seen(node([file("etc/a", "-")]), old, old) == {"etc/a": "not looked at*"}
    assert seen(node([file("etc/z")]), old, old) == {"etc/z": "added*"}
    assert seen(node([gone("etc/d")]), old, old) == {"etc/d": "deleted*"}
    assert seen(node([gone("etc/d")]), old, old, deep=True) == {"etc/d": "deleted*", "etc/d/1": "deleted*"}
    assert seen(node([file("etc/d")]), old, old, deep=True) == {"etc/d": "changed*", "etc/d/1": "deleted*"}


def test_what_modules_made_is_as_it_should_be_until_it_is_changed(old: Tree) -> None:
    own = [folder("etc"), file("etc/a", "11" * 32), gone("etc/b"), file("etc/host")]
    assert seen(node([], own), old, old) == {}
    assert seen(node([file("etc/a", "11" * 32)], own), old, old) == {}
    assert seen(node([file("etc/a"), file("etc/b")], own), old, old) == {"etc/a": "changed*m", "etc/b": "added*m"}


def test_another_generation_is_what_it_lacks(old: Tree, new: Tree) -> None:
    assert seen(node([]), old, new) == {"etc/a": "changed", "etc/b": "added", "etc/n": "deleted"}
    synced = node([file("etc/a", "cd" * 32), gone("etc/b"), file("etc/n")])
    assert seen(synced, old, new) == {}
    found = seen(node([file("etc/m", "22" * 32)], [file("etc/a", "11" * 32)]), old, new)
    assert found == {"etc/b": "added", "etc/m": "changed*", "etc/n": "deleted"}


# --- names


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["n0000"], "n0000"), (["n0000", "n0001", "n0002", "n0007"], "n[0000-0002,0007]"), (["a", "b"], "a,b"),
        (["n9", "n10", "n11"], "n[9-11]"), (["n0999", "n1000"], "n[0999-1000]"), (["r1n1", "r2n1"], "r1n1,r2n1"),
        (["n09", "n9"], "n09,n9"), ([], ""),
    ],
)  # fmt: skip
def test_names_are_folded_as_selectors_spell_them(names: list[str], folded: str) -> None:
    assert fold(names) == folded
    assert sorted(one for part in folded.replace(",n", " n").replace(",b", " b").replace(",r", " r").split()
                  for one in expand(part)) == sorted(names)  # fmt: skip
