"""Reading POSIX shell: which words of a script stand where the shell looks for a command.

The whole grammar of the standard's chapter 2 is read and nothing is guessed: what is not understood is an error with
its line, also what only bash knows. Nothing is run and nothing is expanded. Commands inside $( ), backquotes,
here-documents and arithmetic are found too.
Format: POSIX.1-2017, Shell Command Language, 2.3 (tokens) and 2.10 (grammar).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from initramfs_builder.shellwords import META, NAME, ShellError, Word, Words

__all__ = ["Command", "Script", "ShellError", "Word", "parse_script"]

# Longest first.
OPERATORS = ("<<-", "&&", "||", ";;", "<<", "<&", "<>", ">>", ">|", ">&", "\n", "&", ";", "|", "(", ")", "<", ">")
REDIRECTIONS = frozenset(("<<-", "<<", "<&", "<>", "<", ">>", ">|", ">&", ">"))
CLOSING = frozenset(("}", "do", "done", "elif", "else", "esac", "fi", "then"))
RESERVED = CLOSING | {"!", "{", "case", "for", "if", "in", "until", "while"}
LEAVING = frozenset(("exit", "fail", "return"))  # fail: our scripts' own way out
NOT_POSIX = frozenset(("function", "select", "[["))
PLAIN = re.compile(r"[^\s;&|<>()\"'\\$`#]+")
NUMBER = re.compile(r"[0-9]+(?=[<>])")
BLANKS = re.compile(r"(?:[ \t]|\\\n)+")
GIVEN = re.compile(rf"({NAME.pattern})=")
DEPTH_MAX = 100
SCRIPT_MAX = 256 << 10  # characters


@dataclass(frozen=True)
class Command:
    """A simple command: where it stands and its words, the first in command position.

    ``guards`` are the files without which it does not run: those of "if [ -e FILE ]; then" around it, and of
    "[ -e FILE ] || return" before it. ``function`` is the one it stands in.
    """

    line: int
    words: tuple[Word, ...]
    guards: tuple[Word, ...] = ()
    function: str = ""


@dataclass
class Script:
    """A script's commands in the order they are read, the functions it defines, and what it gives to variables."""

    commands: list[Command] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    assignments: list[tuple[str, Word]] = field(default_factory=list)


@lru_cache(maxsize=512)
def parse_script(text: str, name: str, line: int = 1) -> Script:
    """Read a script, whose first line is ``line`` of ``name``. Raises ShellError."""
    if len(text) > SCRIPT_MAX:
        raise ShellError(f"{name}: more than {SCRIPT_MAX >> 10} KiB", hint="a script of ours is not that long")
    script = Script()
    try:
        _Parser(text, name, line, script, 0).program()
    except RecursionError:
        raise ShellError(f"{name}: too much within each other", hint="write it flatter") from None
    return script


@dataclass
class _Document:
    """A here-document that begins after the next newline."""

    end: str
    tabs: bool
    quoted: bool


class _Parser(Words):
    def __init__(self, text: str, name: str, line: int, script: Script, depth: int) -> None:
        super().__init__(text, name, line)
        self.script, self.depth = script, depth
        self.documents: list[_Document] = []
        self.guards: tuple[Word, ...] = ()
        self.reversed = 0  # how many "!" were read: what they are before says the opposite
        self.inside = ""

    # --- what words ask for

    def substitution(self) -> None:
        self.commands()
        self.take(")")

    def inner(self, text: str, line: int) -> None:
        _Parser(text, self.name, line, self.script, self.depth).program()

    # --- tokens

    def blanks(self) -> None:
        while True:
            if hit := BLANKS.match(self.text, self.at):
                self.at = hit.end()
            if self.look() != "#":
                return
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end

    def operator(self) -> str:
        """The operator here, not taken; empty for a word or the end."""
        self.blanks()
        return next((op for op in OPERATORS if self.text.startswith(op, self.at)), "")

    def take(self, operator: str) -> None:
        if self.operator() != operator:
            raise self.error(f"{operator!r} is missing")
        self.at += len(operator)

    def newlines(self) -> None:
        while self.operator() == "\n":
            self.newline()

    def newline(self) -> None:
        self.at += 1
        documents, self.documents = self.documents, []
        for document in documents:
            self.here_document(document)

    def reserved(self) -> str:
        """The reserved word here, not taken; empty when there is another word, an operator or the end."""
        if self.operator():
            return ""
        hit = PLAIN.match(self.text, self.at)
        word = hit[0] if hit else ""
        follows = self.text[self.at + len(word) : self.at + len(word) + 1]
        if word in NOT_POSIX and (not follows or follows in META):
            raise self.error(f"{word} is not POSIX shell")
        return word if word in RESERVED and (not follows or follows in META) else ""

    def keyword(self, *words: str) -> str:
        self.newlines()
        found = self.reserved()
        if found not in words:
            raise self.error(f"{' or '.join(words)} is missing")
        self.at += len(found)
        return found

    # --- commands

    def program(self) -> None:
        self.commands()
        if self.operator() or self.at < len(self.text):
            raise self.error(f"{self.look()!r} is not expected here")
        if self.documents:
            raise self.error("a here-document has no text")

    def commands(self) -> int:
        """Read commands up to what cannot begin one: a closing word, ")", ";;" or the end; how many there were."""
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise self.error(f"more than {DEPTH_MAX} commands within each other")
        count, outside = 0, self.guards
        while True:
            self.newlines()
            if self.operator() in (")", ";;") or self.at >= len(self.text) or self.reserved() in CLOSING:
                break
            self.pipelines()
            count += 1
            separator = self.operator()
            if separator in (";", "&"):
                self.at += 1
            elif separator != "\n":
                break
        self.depth, self.guards = self.depth - 1, outside
        return count

    def some(self) -> None:
        """Commands, at least one."""
        if not self.commands():
            raise self.error("a command is missing")

    def pipelines(self) -> None:
        before, joined, reversed_before = len(self.script.commands), "", self.reversed
        while True:
            if self.reserved() == "!":
                self.at += 1
                self.reversed += 1
            self.command()
            if self.operator() not in ("&&", "||", "|"):
                break
            joined += self.operator()
            self.at += len(self.operator())
            self.newlines()
        ran = self.script.commands[before:]
        # What runs beside the script ("&") does not leave it.
        plain = self.reversed == reversed_before and self.operator() != "&"
        if joined == "||" and plain and len(ran) == 2 and ran[1].words[0].text({}) in LEAVING:
            self.guards += _tested(ran[:1])

    def command(self) -> None:
        if self.operator() == "(":
            self.at += 1
            self.some()
            self.take(")")
            return self.redirections()
        word = self.reserved()
        compound = self.compounds().get(word)
        if compound is not None:
            self.at += len(word)
            compound()
            return self.redirections()
        if word:
            raise self.error(f"{word} is not expected here")
        return self.simple()

    def compounds(self) -> dict[str, Callable[[], None]]:
        return {"{": self.braces, "if": self.condition, "while": self.loop, "until": self.loop, "for": self.counted,
                "case": self.cases}  # fmt: skip

    def braces(self) -> None:
        self.some()
        self.keyword("}")

    def condition(self) -> None:
        before, outside, reversed_before = len(self.script.commands), self.guards, self.reversed
        self.some()
        if self.reversed == reversed_before:
            self.guards += _tested(self.script.commands[before:])
        self.keyword("then")
        self.some()
        self.guards = outside
        match self.keyword("elif", "else", "fi"):
            case "elif":
                self.condition()
            case "else":
                self.some()
                self.keyword("fi")

    def loop(self) -> None:
        self.some()
        self.body()

    def body(self) -> None:
        self.keyword("do")
        self.some()
        self.keyword("done")

    def counted(self) -> None:
        self.blanks()
        name = self.word().text({})
        if name is None or not NAME.fullmatch(name):
            raise self.error("for needs the name of a variable")
        self.script.assignments.append((name, Word((None,))))  # one value after the other
        self.newlines()
        if self.reserved() == "in":
            self.at += 2
            while not self.operator() and self.at < len(self.text):
                self.word()
        if self.operator() == ";":
            self.at += 1
        self.body()

    def cases(self) -> None:
        self.blanks()
        self.word()
        self.keyword("in")
        self.newlines()
        while self.reserved() != "esac":
            if self.operator() == "(":
                self.at += 1
            self.pattern()
            while self.operator() == "|":
                self.at += 1
                self.pattern()
            self.take(")")
            self.commands()
            if self.operator() == ";;":
                self.at += 2
            elif self.reserved() != "esac":
                raise self.error(";; or esac is missing")
            self.newlines()
        self.at += len("esac")

    def pattern(self) -> None:
        if self.operator() or self.at >= len(self.text):
            raise self.error("a pattern is missing")
        self.word()

    def simple(self) -> None:
        words: list[Word] = []
        line, begin = self.line(), self.at
        while True:
            if self.redirection():
                continue
            if self.operator() or self.at >= len(self.text):
                break
            word = self.word()
            given = GIVEN.match(self.raw)
            if given and not words:
                self.assignment(given[1], word)
                continue
            words.append(word)
            if len(words) == 1 and self.operator() == "(":
                return self.function(word)
        if words:
            self.script.commands.append(Command(line, tuple(words), self.guards, self.inside))
        elif self.at == begin:
            raise self.error("a command is missing")
        return None

    def assignment(self, name: str, word: Word) -> None:
        first, rest = word.parts[0], word.parts[1:]
        assert isinstance(first, str)
        value = first[len(name) + 1 :]
        self.script.assignments.append((name, Word((value, *rest) if value or not rest else rest)))

    def function(self, word: Word) -> None:
        if not NAME.fullmatch(self.raw):
            raise self.error("a function needs a plain name")
        self.take("(")
        self.take(")")
        self.newlines()
        if self.operator() != "(" and self.reserved() not in self.compounds():
            raise self.error("a function needs a body")
        name, outside = word.text({}) or "", self.inside
        self.script.functions.add(name)
        self.inside = name
        self.command()
        self.inside = outside

    def redirections(self) -> None:
        while self.redirection():
            pass

    def redirection(self) -> bool:
        self.blanks()
        start, number = self.at, NUMBER.match(self.text, self.at)
        if number:
            self.at = number.end()
        operator = self.operator()
        if operator not in REDIRECTIONS:
            self.at = start
            return False
        self.at += len(operator)
        if self.operator() or self.at >= len(self.text):
            raise self.error(f"{operator} needs a word")
        word = self.word()
        if operator.startswith("<<"):
            end = word.text({})
            if end is None:
                raise self.error("the end of a here-document must be a plain word")
            self.documents.append(_Document(end, operator == "<<-", any(c in self.raw for c in "\\\"'")))
        return True

    def here_document(self, document: _Document) -> None:
        """Skip the lines of a here-document; where its end was not quoted, expansions in it run."""
        line, body = self.line(), []
        while True:
            if self.at >= len(self.text):
                raise self.error(f"the here-document has no end {document.end}")
            end = self.text.find("\n", self.at)
            end = len(self.text) if end < 0 else end
            row = self.text[self.at : end]
            self.at = min(end + 1, len(self.text))
            if (row.lstrip("\t") if document.tabs else row) == document.end:
                break
            body.append(row)
        if not document.quoted:
            _Parser("\n".join(body), self.name, line, self.script, self.depth).quoted("")


def _tested(commands: list[Command]) -> tuple[Word, ...]:
    """The file that a condition of one "[ -e FILE ]" asks for."""
    words = commands[0].words if len(commands) == 1 else ()
    texts = [word.text({}) for word in words]
    plain = len(words) == 4 and texts[0] == "[" and texts[1] in ("-e", "-f", "-s", "-x") and texts[3] == "]"
    return (words[2],) if plain else ()
