"""The selector grammar, pinned: what each word names, what it leaves unmatched, what is malformed."""

from __future__ import annotations

import pytest

from capsulekit.errors import UsageError
from provisioner.registry.model import Node
from provisioner.registry.selectors import expand, select, select_names

NODES = [
    *(Node(f"52:54:00:00:00:{n:02X}", f"n{n:04}", "new", "rack1" if n < 10 else "rack2") for n in range(25)),
    Node("52:54:00:00:01:00", "r1n1", "", "odd.one"),
    Node("52:54:00:00:01:01", "r1n2", "", "odd.one"),
    Node("52:54:00:00:01:02", "r2n1", "", "odd-two"),
]
N = [n.hostname for n in NODES]


def numbered(*numbers: int) -> list[str]:
    return [f"n{n:04}" for n in numbers]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("n0001", numbered(1)),
        ("n0001.new", numbered(1)),
        ("n00[05-20]", numbered(*range(5, 21))),
        ("n00[05-20/5]", numbered(5, 10, 15, 20)),
        ("n00[00,02-03,07]", numbered(0, 2, 3, 7)),
        ("n000[0-1].new", numbered(0, 1)),
        ("n0*00", numbered(0)),
        ("*00*0", numbered(0, 10, 20)),
        ("n000?", numbered(*range(10))),
        ("*1", ["n0001", "n0011", "n0021", "r1n1", "r2n1"]),
        ("*w", []),
        ("*.new", numbered(*range(25))),
        ("*", N),
        ("r[1-2]n[1]", ["r1n1", "r2n1"]),
        ("r[1-2][n]1", "malformed"),
        ("n00[0-1][1-2]", numbered(1, 2, 11, 12)),
        ("n00[0-2]*", numbered(*range(25))),
        ("n00[0-9]*", numbered(*range(25))),
        ("n0001,n0003", numbered(1, 3)),
        ("n0003 n0001 n0003", numbered(1, 3)),
        ("n000[0-4]!n0002", numbered(0, 1, 3, 4)),
        ("n000[0-4]&n000[3-6]", numbered(3, 4)),
        ("n000[0-4]^n000[3-6]", numbered(0, 1, 2, 5, 6)),
        ("n000[0-4]!n000[1-3],n0002", numbered(0, 2, 4)),
        ("n000[0-4],r1n1&r*", ["r1n1"]),
        ("@rack1", numbered(*range(10))),
        ("@rack1!n000[1-9]", numbered(0)),
        ("@odd.one", ["r1n1", "r1n2"]),
        ("@odd*", ["r1n1", "r1n2", "r2n1"]),
        ("@rack[1-2]&*5", numbered(5, 15)),
        ("N0001", "unmatched"),
        ("n000", "unmatched"),
        ("0001", "unmatched"),
        ("n9999", "unmatched"),
        ("n0001.old", "unmatched"),
        ("x*", "unmatched"),
        ("@nobody", "unmatched"),
        ("@", "unmatched"),
        ("", "unmatched"),
        ("n0001&n0002", "unmatched"),
        ("n00[05-", "malformed"),
        ("n00]5", "malformed"),
        ("n0[[0-1]]", "malformed"),
        ("n0[5-2]", "malformed"),
        ("n0[a-b]", "malformed"),
        ("n0[1-5/0]", "malformed"),
        ("n[]", "malformed"),
        ("n0001!", "malformed"),
        ("!n0001", "malformed"),
        ("n0001,,n0002", "malformed"),
        ("n[0-99999999]", "malformed"),
    ],
)
def test_each_word_names_these_nodes(words: str, names: list[str] | str) -> None:
    asked = words.split(" ")
    if names == "malformed":
        with pytest.raises(UsageError, match="selector"):
            select(asked, NODES)
        return
    got = select(asked, NODES)
    if names in ("unmatched", []):
        assert (got.nodes, got.unmatched) == ((), tuple(asked))
    else:
        assert ([n.hostname for n in got.nodes], got.unmatched) == (names, ())


@pytest.mark.timeout(60)  # trying every way to share out the letters between the stars would take years
@pytest.mark.parametrize("word", ["*a*a" * 40 + "b", "*" * 2000 + "b", "?*" * 60 + "b"])
def test_many_stars_cost_no_more_than_a_few(word: str) -> None:
    assert not select([word], [Node("52:54:00:00:00:01", "a" * 63)]).nodes


def test_every_literal_name_that_is_not_registered_is_named() -> None:
    got = select(["n00[23-26]", "@rack1", "n0001!n9999", "nope*"], NODES)
    assert got.unmatched == ("n0025", "n0026", "n9999", "nope*")
    assert [n.hostname for n in got.nodes] == numbered(*range(10), 23, 24)


@pytest.mark.parametrize(
    "word", ["52:54:00:00:00:0a", "52-54-00-00-00-0A", "01-52-54-00-00-00-0a", "52:54:00:00:00:?a", "*:00:0a"]
)
def test_macs_select_in_any_case_and_spelling(word: str) -> None:
    assert [n.hostname for n in select([word], NODES, by_mac=True).nodes] == ["n0010"]


def test_a_name_is_no_mac() -> None:
    assert select(["n0001"], NODES, by_mac=True).unmatched == ("n0001",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n0[5-0007]", ["n00005", "n00006", "n00007"]),
        ("n[5-10/2,1]x", ["n5x", "n7x", "n9x", "n1x"]),
        ("a[1-2][01-02]b", ["a101b", "a102b", "a201b", "a202b"]),
    ],
)
def test_padding_follows_the_text_and_adjacent_brackets_multiply(text: str, names: list[str]) -> None:
    assert list(expand(text)) == names


@pytest.mark.parametrize(
    ("words", "names", "unmatched"),
    [
        ("rack1", ["rack1"], ()),
        ("@rack1 odd.one", ["odd.one", "rack1"], ()),
        ("*", ["odd.one", "rack1", "rack2"], ()),
        ("rack[1-2]!rack1", ["rack2"], ()),
        ("*.one", ["odd.one"], ()),
        ("rack[1-3]", ["rack1", "rack2"], ("rack3",)),
        ("Rack1 x*", [], ("Rack1", "x*")),
        ("rack1&rack2", [], ("rack1&rack2",)),
    ],
)
def test_plain_names_are_selected_by_the_same_grammar(words: str, names: list[str], unmatched: tuple[str, ...]) -> None:
    got = select_names(words.split(), ["odd.one", "rack1", "rack2"])
    assert (list(got.names), got.unmatched) == (names, unmatched)


def test_a_malformed_word_is_one_for_plain_names_too() -> None:
    with pytest.raises(UsageError, match="selector"):
        select_names(["rack[1-"], ["rack1"])
