"""The words of POSIX shell: quotes, and the expansions within them.

Words keep what is fixed in them, so that "$LIB/x.sh" can be told when LIB is.
Format: POSIX.1-2017, Shell Command Language, 2.2 (quoting) and 2.6 (expansions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from initramfs_builder.errors import CapsulekitError

META = frozenset(" \t\n;&|<>()")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
DOLLAR = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-]")
OPERATION = re.compile(r":[-=?+]|##?|%%?|[-=?+]")


class ShellError(CapsulekitError):
    """A script that is not POSIX shell."""


@dataclass(frozen=True)
class Variable:
    """A parameter's expansion: its name, and for ${NAME-WORD}, ${NAME:-WORD} the word."""

    name: str
    default: Word | None = None


@dataclass(frozen=True)
class Word:
    """A word with its quotes taken off: fixed texts, variables, and None for what only running it would tell."""

    parts: tuple[str | Variable | None, ...]

    def text(self, values: Mapping[str, str]) -> str | None:
        """What the word says when the variables have these values; None when that cannot be told."""
        texts = []
        for part in self.parts:
            text = part
            if isinstance(part, Variable):
                text = values.get(part.name)
                if text is None and part.default is not None:
                    text = part.default.text(values)
            if not isinstance(text, str):
                return None
            texts.append(text)
        return "".join(texts)


class Words:
    """A place in a text, and reading one word from there; who reads commands says how those within words are read."""

    def __init__(self, text: str, name: str, first: int) -> None:
        self.text, self.name, self.first = text, name, first
        self.at = 0
        self._counted = (0, first)  # a place and its line
        self.raw = ""  # of the word just read, quotes and all

    def substitution(self) -> None:
        """Read commands and the ")" behind them."""
        raise NotImplementedError

    def inner(self, text: str, line: int) -> None:
        """Read the commands of a text that begins on ``line``."""
        raise NotImplementedError

    def line(self) -> int:
        """The line of the place."""
        at, line = self._counted if self._counted[0] <= self.at else (0, self.first)
        self._counted = (self.at, line + self.text.count("\n", at, self.at))
        return self._counted[1]

    def error(self, what: str) -> ShellError:
        """The error for what was found here."""
        return ShellError(f"{self.name}, line {self.line()}: {what}", hint="it must be POSIX shell")

    def look(self, size: int = 1) -> str:
        """The next characters, not taken."""
        return self.text[self.at : self.at + size]

    def word(self) -> Word:
        """Read a word, which must begin here."""
        start, parts = self.at, list[str | Variable | None]()
        while self.at < len(self.text) and self.look() not in META:
            parts += self.piece()
        self.raw = self.text[start : self.at]
        return Word(_joined(parts))

    def piece(self) -> list[str | Variable | None]:
        """The next character of a word outside quotes, or what is quoted or expanded there."""
        char = self.look()
        match char:
            case "'":
                return [self.single()]
            case '"':
                self.at += 1
                return ["", *self.quoted('"')]
            case "\\":
                self.at += 2
                if self.at > len(self.text):
                    raise self.error("a backslash ends the script")
                return [] if self.text[self.at - 1] == "\n" else [self.text[self.at - 1]]
            case "$" | "`":
                return [self.expansion(quoted=False)]
        self.at += 1
        return [char]

    def single(self) -> str:
        """What stands in single quotes."""
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise self.error("a single quote has no end")
        text = self.text[self.at + 1 : end]
        self.at = end + 1
        return text

    def quoted(self, end: str) -> list[str | Variable | None]:
        """What stands in double quotes (or, without an ``end``, in a here-document), and the quote behind it."""
        parts: list[str | Variable | None] = []
        while self.at < len(self.text):
            char = self.look()
            if char == end:
                self.at += 1
                return parts
            if char == "\\":
                escaped = self.text[self.at + 1 : self.at + 2]
                self.at += 2
                # "\\n" is one line in two; before other characters the backslash stands for itself.
                parts.append("" if escaped == "\n" else escaped if escaped in '$`"\\' else "\\" + escaped)
            elif char in "$`":
                parts.append(self.expansion(quoted=True))
            else:
                self.at += 1
                parts.append(char)
        if end:
            raise self.error("a double quote has no end")
        return parts

    def expansion(self, *, quoted: bool) -> str | Variable | None:
        """What begins with "$" or a backquote."""
        if self.look(2) == "${":
            return self.parameter(quoted=quoted)
        if self.look() == "`":
            self.backquotes()
            return None
        if self.look(3) == "$((":
            self.arithmetic()
            return None
        if self.look(2) == "$(":
            self.at += 2
            self.substitution()
            return None
        self.at += 1
        name = DOLLAR.match(self.text, self.at)
        if name is None:
            return "$"
        self.at = name.end()
        return Variable(name[0])

    def backquotes(self) -> None:
        """Commands in backquotes; within them a backslash protects "$", a backquote and itself only."""
        line, end = self.line(), self.at + 1
        while end < len(self.text) and self.text[end] != "`":
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text):
            raise self.error("a backquote has no end")
        text = re.sub(r"\\([$`\\])", r"\1", self.text[self.at + 1 : end])
        self.at = end + 1
        self.inner(text, line)

    def arithmetic(self) -> None:
        """$(( )): only what is expanded in it matters."""
        self.at, depth = self.at + 3, 0
        while self.at < len(self.text):
            char = self.look()
            if char in "$`":
                self.expansion(quoted=True)
                continue
            if char == ")" and not depth:
                if self.look(2) != "))":
                    raise self.error("$(( is closed by a single ): write $( ( for a subshell")
                self.at += 2
                return
            depth += (char == "(") - (char == ")")
            self.at += 1
        raise self.error("$(( has no end")

    def parameter(self, *, quoted: bool) -> Variable | None:
        """${NAME}, ${#NAME} and ${NAME operation word}."""
        start = self.at
        self.at += 2
        length = self.look() == "#" and self.look(2) != "#}"
        if length:
            self.at += 1
        name = PARAMETER.match(self.text, self.at)
        if name is None:
            raise self.error("${ needs a name")
        self.at = name.end()
        if self.look() == "}":
            self.at += 1
            return None if length else Variable(name[0])
        operation = OPERATION.match(self.text, self.at)
        if operation is None or (length and name[0] != "#"):
            raise self.error(f"{self.text[start : self.at + 1]} is not POSIX shell")
        self.at = operation.end()
        # Inside double quotes a single quote is one, unless the word is a pattern.
        word = self.operand(quoted=quoted and operation[0][0] not in "#%")
        return Variable(name[0], word) if operation[0] in ("-", ":-", "=", ":=") else None

    def operand(self, *, quoted: bool) -> Word:
        """The word of an expansion and the "}" behind it."""
        parts: list[str | Variable | None] = []
        while self.at < len(self.text):
            char = self.look()
            if char == "}":
                self.at += 1
                return Word(_joined(parts))
            if quoted and char == "'":
                self.at += 1
                parts.append(char)
            else:
                parts += self.piece()
        raise self.error("${ has no end")


def _joined(parts: list[str | Variable | None]) -> tuple[str | Variable | None, ...]:
    """The parts with texts side by side made one."""
    joined: list[str | Variable | None] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)
