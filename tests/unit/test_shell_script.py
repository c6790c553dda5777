"""Which words of a script are commands: found in all of POSIX shell's grammar, and nothing guessed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from initramfs_builder.shellscript import Script, ShellError, parse_script

ROOT = Path(__file__).parents[2]
SHELL = re.compile(r"#!.*/sh\b|# shellcheck shell=sh\b")

CASES = {
    "echo a; printf b": ["echo", "printf"],
    "a && b || c | d & e": ["a", "b", "c", "d", "e"],
    "! a | b": ["a", "b"],
    "X=1 Y=$(date) prog arg": ["date", "prog"],
    "X=$(a `b` \"$(c)\")": ["b", "c", "a"],
    "if a; then b; elif c; then d; else e; fi >f": ["a", "b", "c", "d", "e"],
    "while a; do b; done; until c; do d; done <x": ["a", "b", "c", "d"],
    "for i in $(a) b; do c; done": ["a", "c"],
    "for i\ndo c; done": ["c"],
    "case $(a) in b | 'c)') d ;; (*) e ; esac": ["a", "d", "e"],
    "case x in esac; a": ["a"],
    "case x in for) a ;; esac": ["a"],
    "(a; b); { c; d; }": ["a", "b", "c", "d"],
    "f() { a; }\ng() (b)\nh()\n{\nc\n}\nf": ["a", "b", "c", "f"],
    "f() if a; then b; fi": ["a", "b"],
    "2>/dev/null a 3<&0 b >>c": ["a"],
    ">out": [],
    "a \"b;c\" 'd;e' f\\;g": ["a"],
    "a # b; c\nd": ["a", "d"],
    "a#b": ["a#b"],
    "a \\\n b\nc": ["a", "c"],
    "'a'\"b\"c": ["abc"],
    "\"a b\"": ["a b"],
    "\\a": ["a"],
    "echo ${x:-$(a)} \"${y%`b`}\" ${#z} ${1}": ["a", "b", "echo"],
    "echo $((1 + $(a) * (2 + x)))": ["a", "echo"],
    "echo \"${x:-it's}\"": ["echo"],
    "echo $x$1$@$?$$ $": ["echo"],
    "cat <<E\n$(a) `b`\nE\nc": ["cat", "a", "b", "c"],
    "cat <<'E'; d\n$(a)\nE\nc": ["cat", "d", "c"],
    "cat <<-E <<F\n\t$(a)\n\tE\n$(b)\nF\nc": ["cat", "a", "b", "c"],
    "cat <<E\n\"quotes' do not count\nE\nc": ["cat", "c"],
    "x=$(cat <<E\n$(a)\nE\n)\nb": ["cat", "a", "b"],
    "`a \\`b\\` \\$c`": ["b", "a", "None"],
    "echo \"$(echo \"$(a)\")\"": ["a", "echo", "echo"],
    "a;b": ["a", "b"],
    "if a\nthen\n b\nfi": ["a", "b"],
    "a then do {": ["a"],
    "{ a; } && b": ["a", "b"],
    "": [],
    "# only a comment": [],
}  # fmt: skip

WRONG = {
    "if a; fi": "then is missing",
    "if ; then b; fi": "a command is missing",
    "if a; then b": "elif or else or fi is missing",
    "while a; do b; fi": "done is missing",
    "a; }": "not expected",
    "fi": "not expected",
    "a )": "not expected",
    "(a": "')' is missing",
    "()": "a command is missing",
    "a &&": "a command is missing",
    "a | ; b": "a command is missing",
    "; a": "a command is missing",
    "a ;; b": "not expected",
    "echo 'x": "a single quote has no end",
    'echo "x': "a double quote has no end",
    "echo `x": "a backquote has no end",
    "echo $(x": "')' is missing",
    "echo $((1": "has no end",
    "echo $((1)": "closed by a single",
    "echo ${x": "is not POSIX",
    "echo ${x:-y": "has no end",
    "echo ${x:0:2}": "is not POSIX",
    "echo ${x/a/b}": "is not POSIX",
    "echo ${!x}": "is not POSIX",
    "echo ${}": "needs a name",
    "cat <<E\nx": "has no end E",
    "cat <<E": "has no text",
    "cat <<$x\nx\n": "must be a plain word",
    "a >": "needs a word",
    "case x in a) b": ";; or esac is missing",
    "case x a) b ;; esac": "in is missing",
    "case x in ) b ;; esac": "a pattern is missing",
    "for 1x in a; do b; done": "needs the name",
    "for x in a; b; done": "do is missing",
    "f() a": "needs a body",
    "'f'() { a; }": "needs a plain name",
    "function f { a; }": "function is not POSIX",
    "[[ a ]]": "[[ is not POSIX",
    "select x in a; do b; done": "select is not POSIX",
    "a \\": "a backslash ends",
    "{ " * 120 + "a": "within each other",
}


def commands(text: str) -> list[str | None]:
    return [command.words[0].text({}) for command in parse_script(text, "script").commands]


@pytest.mark.parametrize("text", CASES)
def test_the_words_in_command_position_are_found(text: str) -> None:
    assert sorted(map(str, commands(text))) == sorted(CASES[text])


@pytest.mark.parametrize("text", WRONG)
def test_what_is_not_posix_shell_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(ShellError) as error:
        parse_script("\n" + text, "script")
    assert WRONG[text] in error.value.message
    assert error.value.message.startswith("script, line ") and "\n" not in error.value.message


@pytest.mark.skipif(not shutil.which("dash"), reason="needs dash")
@pytest.mark.parametrize("text", [*CASES, *WRONG])
def test_dash_agrees_on_what_is_shell(text: str) -> None:
    done = subprocess.run(["dash", "-n"], input=text.encode(), capture_output=True, check=False)
    # Read as words or without looking: what only bash knows, expansions that run, a here-document's end of any kind.
    words = ("is not POSIX", "needs a", "plain word", "within each other", "backslash ends", "closed by", "no text")
    lenient = (*words, "has no end E")
    if not any(word in WRONG.get(text, "") for word in lenient):
        assert (done.returncode == 0) == (text in CASES), done.stderr


def test_every_shell_file_of_the_project_is_understood() -> None:
    folders = ("initramfs-builder", "capsulekit", "provisioner")
    every = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    posix = [path for path in [*every, ROOT / "setup.sh"] if SHELL.match(path.read_text(errors="replace")[:80])]
    assert len(posix) > 30
    for path in posix:
        assert parse_script(path.read_text(), str(path)).commands, path


@pytest.mark.skipif(not shutil.which("dash"), reason="needs dash")
def test_what_dash_takes_is_understood_on_this_machine_too() -> None:
    """Hundreds of scripts of other people; the one thing left out is what dash only refuses when it gets there."""
    places = [path for top in ("/usr/bin", "/usr/sbin", "/usr/share") for path in Path(top).glob("*")]
    scripts = [
        p for p in places if p.is_file() and p.stat().st_size < 1 << 18 and p.read_bytes()[:10] == b"#!/bin/sh\n"
    ]
    understood = 0
    for path in scripts:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        takes = subprocess.run(["dash", "-n", path], capture_output=True, check=False).returncode == 0
        try:
            parse_script(text, str(path))
            assert takes, path
            understood += 1
        except ShellError as error:
            assert not takes or "is not POSIX shell" in error.message, error.message
    assert understood > 10


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab $`\"'\\(){};&|<>\n#=if thendo", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_script(text, "script")
    except ShellError as error:
        assert error.message.startswith("script, line ")


def script(text: str) -> Script:
    return parse_script(text, "script")


def test_what_is_fixed_in_a_word_can_be_told() -> None:
    word = script('. "$LIB/${X:-a}"b').commands[0].words[1]
    assert word.text({"LIB": "/lib"}) == "/lib/ab"
    assert word.text({"LIB": "/lib", "X": "c"}) == "/lib/cb"
    assert word.text({}) is None
    assert script("a $(b)").commands[1].words[1].text({}) is None
    assert script('a "${#x}" ').commands[0].words[1].text({"x": "1"}) is None
    assert script("a '$x'\\$").commands[0].words[1].text({}) == "$x$"


def test_functions_assignments_lines_and_guards_are_noted() -> None:
    read = script('A=b\nf() {\n  C=${D:-e} run\n}\nif [ -e "$A/x" ]; then g; else h; fi\n[ -f y ] || return\ni\n')
    assert read.functions == {"f"}
    assert [(name, word.text({})) for name, word in read.assignments] == [("A", "b"), ("C", "e")]
    by_name = {command.words[0].text({}): command for command in read.commands}
    assert (by_name["run"].line, by_name["run"].function, by_name["g"].function) == (3, "f", "")
    guards = {name: [word.text({"A": "a"}) for word in command.guards] for name, command in by_name.items()}
    assert (guards["g"], guards["h"], guards["i"], guards["run"]) == (["a/x"], [], ["y"], [])
