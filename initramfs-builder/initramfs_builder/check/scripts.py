"""What our shell runs: every word that stands where the shell looks for a command must be a command of the image.

Scripts are read together with those they source, since they share functions and variables. What only running would
tell (a variable) is stated in a script's lines "# needs: COMMAND…", whose words must be there too; "# tries: COMMAND…"
names what a script does without where there is none. The agent's files are left out: they run on the node's own root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import takewhile

from initramfs_builder.check.problem import Problem
from initramfs_builder.image import Fact, Image
from initramfs_builder.shellscript import Command, Script, ShellError, parse_script
from initramfs_builder.shellwords import Variable, Word

PATH = ("usr/sbin", "usr/bin", "sbin", "bin")
OURS = "lib/capsulekit"
AGENT = re.compile(r"(?:usr/)?lib/capsulekit/agent/.*")
SHELL = re.compile(r"#![ \t]*/\S*/(?:ba|da|a)?sh\b|# shellcheck shell=sh\b")
INTERPRETER = re.compile(r"#![ \t]*(\S+)[ \t]*(\S*)")
NEEDS, TRIES = "# needs:", "# tries:"
# What both busybox's ash and dash have in themselves.
BUILTINS = frozenset((
    ".", ":", "[", "alias", "bg", "break", "cd", "command", "continue", "echo", "eval", "exec", "exit", "export",
    "false", "fg", "getopts", "hash", "jobs", "kill", "local", "printf", "pwd", "read", "readonly", "return", "set",
    "shift", "test", "times", "trap", "true", "type", "ulimit", "umask", "unalias", "unset", "wait",
))  # fmt: skip
# Commands that run the command in their arguments: options that take an argument of their own, arguments before it.
RUNNERS = {
    "busybox": ("", 0), "command": ("", 0), "cttyhack": ("", 0), "env": ("uCS", 0), "exec": ("", 0),
    "ionice": ("cnp", 0), "nice": ("n", 0), "nohup": ("", 0), "setsid": ("", 0), "time": ("fo", 0),
    "timeout": ("ks", 1), "xargs": ("adEILnPs", 0),
}  # fmt: skip
SHELLS = ("ash", "dash", "sh")  # told with -c what to run
# Commands that give variables a value → whether also without a "=".
GIVERS = {"export": False, "getopts": True, "local": False, "read": True, "readonly": False, "unset": True}
ARGUMENTS = (Word(("", Variable("@"))), Word((Variable("@"),)))


@dataclass
class Program:
    """A script that is started, and everything it sources: path → what was read. Asked about when all is read."""

    root: str
    scripts: dict[str, Script] = field(default_factory=dict)
    sourced_by: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)

    @cached_property
    def functions(self) -> set[str]:
        """The functions of all scripts."""
        return {name for script in self.scripts.values() for name in script.functions}

    @cached_property
    def forwards(self) -> dict[str, int]:
        """Functions that run their own arguments ("$@") → how many arguments stand before the command."""
        found: dict[str, int] = {}
        shifts: dict[str, int] = {}
        for script in self.scripts.values():
            for command in script.commands:
                if command.words[0].text({}) == "shift":
                    shifts[command.function] = shifts.get(command.function, 0) + 1
                elif command.words[0] in ARGUMENTS and command.function:
                    found.setdefault(command.function, shifts.get(command.function, 0))
        return found

    def chain(self, path: str) -> tuple[str, ...]:
        """From the script that is started to one that it sources."""
        chain: tuple[str, ...] = (path,)
        while path in self.sourced_by:
            path = self.sourced_by[path]
            chain = (path, *chain)
        return chain


def check_scripts(image: Image) -> Iterator[Problem]:
    """Everything that our scripts run, source or name and that is not in the image, each once."""
    yield from _interpreters(image)
    said: set[tuple[str, str]] = set()
    for problem in (problem for program in our_programs(image) for problem in _program(image, program)):
        if (key := (problem.chain[-2:][0], problem.chain[-1])) not in said:
            said.add(key)
            yield problem


def check_asked(image: Image, commands: Iterable[str]) -> Iterator[Problem]:
    """Commands that were asked for: whoever works at a node's console, or writes a provision script, counts on them."""
    for name in commands:
        if what := find_command(image, name):
            yield Problem("command", ("the recipe", name), what)


def our_scripts(image: Image) -> dict[str, Fact]:
    """The shell scripts of ours in an image that run there: /init and what lies in lib/capsulekit."""
    ours = dict(image.below(OURS))
    if (init := image.resolve("init")) and init in image.facts:
        ours = {init: image.facts[init], **ours}
    return {
        path: fact for path, fact in ours.items() if fact.data and SHELL.match(fact.text) and not AGENT.fullmatch(path)
    }


def externals(program: Program, path: str) -> Iterator[tuple[Command, str]]:
    """(where, name) of every command of a read script that is neither built in nor a function; in arguments too."""
    inner = {name: ("", skipped) for name, skipped in program.forwards.items()} | RUNNERS
    own = BUILTINS | program.functions
    for command in program.scripts[path].commands:
        names = _names(command.words, program.values, inner)
        yield from ((command, name) for name in names if name not in own)


def stated(text: str, line: str = NEEDS) -> list[str]:
    """The words of a script's lines "# needs:" (or "# tries:")."""
    return [word for one in text.splitlines() if one.startswith(line) for word in one.removeprefix(line).split()]


def find_command(image: Image, name: str) -> str | None:
    """None when a command can be run, otherwise what is wrong with it."""
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in PATH]
    found = next((place for place in places if image.file(place)), None)
    if found is None:
        return "not in the image"
    fact, real = image.file(found), image.resolve(found) or ""
    assert fact is not None
    if not fact.can_run:
        return f"{real} cannot be executed"
    program = real.rpartition("/")[2]
    applet = found.rpartition("/")[2]
    if program.startswith("busybox") and applet != program and applet not in fact.words:
        return f"{real} has no such applet"
    return None


def _interpreters(image: Image) -> Iterator[Problem]:
    """Scripts that can be executed, ours or not, need what their first line names."""
    for path, fact in sorted(image.facts.items()):
        line = INTERPRETER.match(fact.text[:256]) if fact.can_run and fact.data else None
        if line is None:
            continue
        wanted = [line[1].lstrip("/")]
        if line[1].endswith("/env"):
            wanted.append(line[2])
        for one in wanted:
            if what := find_command(image, one):
                yield Problem("interpreter", (path, one), what)


def our_programs(image: Image) -> Iterator[Program]:
    """Our scripts, each with what it sources; what nobody sources stands for itself."""
    ours = our_scripts(image)
    started = [path for path, fact in ours.items() if fact.text.startswith("#!")]
    reached: set[str] = set()
    for path in started:
        program = _read(image, path)
        reached |= program.scripts.keys()
        yield program
    for path in ours:
        if path not in reached:
            program = _read(image, path)
            reached |= program.scripts.keys()
            yield program


def _read(image: Image, root: str) -> Program:
    """Read a script and what it sources, until nothing new is named."""
    program, todo = Program(root), [root]
    while todo:
        path = todo.pop(0)
        fact = image.facts[path]
        try:
            program.scripts[path] = parse_script(fact.text, path)
        except ShellError:
            program.scripts[path] = Script()  # said by _program
        program.values = _values(program)
        for by, script in program.scripts.items():
            for _, name in _sourced(image, script, program.values):
                real = image.resolve(name) if name else None
                if real and image.facts[real].is_file and real not in program.scripts and real not in todo:
                    todo.append(real)
                    program.sourced_by[real] = by
    return program


def _program(image: Image, program: Program) -> Iterator[Problem]:
    for path, script in program.scripts.items():
        fact, chain = image.facts[path], program.chain(path)
        try:
            parse_script(fact.text, path)
        except ShellError as error:
            yield Problem("script", chain, error.message)
            continue
        for command, name in _sourced(image, script, program.values):
            if name is None:
                yield Problem("script", chain, f"line {command.line} sources what only running it would tell")
            elif image.file(name) is None:
                yield Problem("script", (*chain, name))
        try:
            ran = [name for command, name in externals(program, path) if _runs(image, command, program.values)]
        except ShellError as error:
            yield Problem("script", chain, error.message)
            continue
        tried = stated(fact.text, TRIES)
        for name in dict.fromkeys((*(name for name in ran if name not in tried), *stated(fact.text))):
            if what := find_command(image, name):
                yield Problem("command", (*chain, name), what)
        for name in _named_files(image, script, program.values):
            if image.fact(name) is None:
                yield Problem("script", (*chain, name))


def _values(program: Program) -> dict[str, str]:
    """Variables that are only ever given one fixed value."""
    given: dict[str, set[str | None]] = {}
    for script in program.scripts.values():
        for name, word in script.assignments:
            given.setdefault(name, set()).add(word.text({}))
        for command in script.commands:
            first, *rest = (word.text({}) for word in command.words)
            for text in rest if first in GIVERS else ():
                name, equals, value = (text or "").partition("=")
                if equals or GIVERS[first or ""]:
                    given.setdefault(name, set()).add(value if equals else None)
    return {name: value for name, (value, *more) in given.items() if value is not None and not more}


def _runs(image: Image, command: Command, values: Mapping[str, str]) -> bool:
    """Whether a command's place is reached: not below "if [ -e FILE ]" when the image lacks that file of ours."""
    guards = (word.text(values) for word in command.guards)
    return all(guard is None or not _is_ours(guard) or image.fact(guard) is not None for guard in guards)


def _sourced(image: Image, script: Script, values: Mapping[str, str]) -> Iterator[tuple[Command, str | None]]:
    for command in script.commands:
        if command.words[0].text(values) == "." and len(command.words) > 1 and _runs(image, command, values):
            yield command, command.words[1].text(values)


def _named_files(image: Image, script: Script, values: Mapping[str, str]) -> list[str]:
    """Files of ours that commands are given, without those that some test asks for."""
    named, tested = dict[str, None](), set[str]()
    for command in script.commands:
        first = command.words[0].text(values)
        texts = [text for word in command.words[1:] if (text := word.text(values)) and _is_ours(text)]
        if first in ("[", "test"):
            tested.update(texts)
        elif first != "." and _runs(image, command, values):
            named.update(dict.fromkeys(texts))
    return [name for name in named if name not in tested]


def _is_ours(text: str) -> bool:
    return re.fullmatch(r"/(?:usr/)?lib/capsulekit/[^*?\[\s]+", text) is not None


def _names(words: tuple[Word, ...], values: Mapping[str, str], inner: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    """The commands that a simple command runs: its first word, and those that it is told to run."""
    texts = [word.text(values) for word in words]
    name, rest = texts[0], list[str | None]()
    if name is None or not name.split():
        return
    name = name.split()[0]  # a variable outside quotes may hold a command with its options
    yield name
    if name == "find":
        places = [at for at, text in enumerate(texts) if text in ("-exec", "-execdir", "-ok", "-okdir")]
        for at in places:
            yield from _names(words[at + 1 :], values, inner)
    elif quoted := _in_quotes(name, texts[1:]):
        for command in _parsed(quoted).commands:
            yield from _names(command.words, values, inner)
    elif name in inner and not (name == "command" and texts[1:2] in (["-v"], ["-V"])):
        rest = _after_options(texts[1:], inner[name][0])[inner[name][1] :]
        while name == "env" and rest and rest[0] is not None and "=" in rest[0]:
            rest = rest[1:]
    if rest:
        yield from _names(words[len(words) - len(rest) :], values, inner)


def _in_quotes(name: str, texts: list[str | None]) -> str | None:
    """The commands that trap, eval or sh -c are given as text, as far as it can be told."""
    if name in ("trap", "eval"):
        texts = texts[1:] if texts[:1] == ["--"] else texts
        return None if texts[:1] == ["-"] else next(iter(texts), None)
    if name.rpartition("/")[2] not in SHELLS:
        return None
    options = list(takewhile(lambda text: text is not None and text[:1] in ("-", "+"), texts))
    runs = any("c" in (option or "") and not (option or "").startswith("--") for option in options)
    given = next(iter(texts[len(options) :]), None) if runs else None
    return None if given is None or "{}" in given else given  # find and xargs put something there


@lru_cache(maxsize=256)
def _parsed(text: str) -> Script:
    return parse_script(text, "a command in quotes")


def _after_options(texts: list[str | None], valued: str) -> list[str | None]:
    """What follows a command's options; those in ``valued`` take the next word unless their own holds more."""
    while texts and texts[0] is not None and len(texts[0]) > 1 and texts[0].startswith("-"):
        takes = texts[0][-1] in valued and not texts[0].startswith("--")
        last, texts = texts[0] == "--", texts[2 if takes else 1 :]
        if last:
            break
    return texts
