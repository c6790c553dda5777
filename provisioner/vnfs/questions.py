"""What a capsule asks the site that imports it (configure.toml), and the files its answers become.

Data only: a question names a file and its text with ``{KEY}`` in it, and nothing of the capsule runs here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from capsulekit.errors import CapsulekitError, TrustError
from provisioner.vnfs.crypt import hashed

MEMBER = "configure.toml"
MAX_SIZE = 1 << 20  # bytes
MAX_ANSWER = 4096  # letters
MAX_QUESTIONS = 256
KINDS = ("text", "password", "number", "choice", "yesno")

# Answers by key; "" is "not answered".
Answers = Mapping[str, str]

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PLACE = re.compile(r"\{([a-z][a-z0-9_-]*)(:crypt)?\}")
_TYPES: dict[str, type] = {
    "key": str, "prompt": str, "type": str, "default": str, "required": bool, "choices": list, "target": str,
    "template": str,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question; ``target`` is the path in the root, without a leading slash, that ``template`` becomes, or ""."""

    key: str
    prompt: str
    kind: str = "text"
    default: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()
    target: str = ""
    template: str = ""

    def check(self, answer: str) -> str:
        """The answer as it is kept. Raises CapsulekitError naming the key; a password is never in the message."""
        told = "that" if self.kind == "password" else repr(answer[:80])
        if not answer.isprintable() or len(answer) > MAX_ANSWER:
            raise CapsulekitError(f"the answer to {self.key} must be one line of at most {MAX_ANSWER} letters")
        if not answer:
            if self.required:
                raise CapsulekitError(f"the question {self.key!r} must be answered ({self.prompt})")
            return ""
        if self.kind == "number" and not re.fullmatch(r"-?[0-9]{1,18}", answer):
            raise CapsulekitError(f"the answer to {self.key} must be a whole number, not {told}")
        if self.kind == "choice" and answer not in self.choices:
            raise CapsulekitError(f"the answer to {self.key} can't be {told}", hint="one of " + ", ".join(self.choices))
        if self.kind == "yesno":
            short = {"y": "yes", "yes": "yes", "n": "no", "no": "no"}.get(answer.lower())
            if short is None:
                raise CapsulekitError(f"the answer to {self.key} must be yes or no, not {told}")
            return short
        return answer


@dataclass(frozen=True)
class SiteFile:
    """A file for the site's own layer: its path without a leading slash, its content, and its mode."""

    path: str
    data: bytes
    mode: int


@dataclass(frozen=True)
class Questions:
    """All questions of one capsule, in their order."""

    all: tuple[Question, ...]

    def of(self, key: str) -> Question | None:
        """The question with this key."""
        return next((q for q in self.all if q.key == key), None)

    def settled(self, answers: Answers) -> dict[str, str]:
        """Every question's answer as it is kept; a password that is only wanted as its hash is kept as that.

        Raises CapsulekitError for the first wrong answer, and names every required one that is missing.
        """
        missing = [q.key for q in self.all if q.required and not answers.get(q.key)]
        if missing:
            word = "question" if len(missing) == 1 else "questions"
            raise CapsulekitError(
                f"{word} without an answer: {', '.join(missing)}", hint="give answers in a file: --answers FILE"
            )
        kept = {q.key: q.check(answers.get(q.key, "")) for q in self.all}
        for key in self._only_hashed() & {q.key for q in self.all if q.kind == "password"}:
            kept[key] = hashed(kept[key]) if kept[key] else ""
        return kept

    def files(self, answers: Answers) -> list[SiteFile]:
        """The files that these settled answers become, by path; one whose questions are all unanswered is left out."""
        found = []
        for question in self.all:
            used = self._used(question.template)
            if not question.target or not any(answers.get(key) for key, _ in used):
                continue
            secret = any(self._kind(key) == "password" for key, _ in used)
            text = _PLACE.sub(lambda place: self._filled(place, answers), question.template)
            found.append(SiteFile(question.target, text.encode(), 0o600 if secret else 0o644))
        return sorted(found, key=lambda file: file.path)

    def secrets(self) -> frozenset[str]:
        """Keys of the questions whose answers are never shown."""
        return frozenset(q.key for q in self.all if q.kind == "password")

    def _filled(self, place: re.Match[str], answers: Answers) -> str:
        key, crypt = place[1], place[2]
        if self.of(key) is None:
            return place[0]  # other braces are text
        answer = answers.get(key, "")
        return hashed(answer) if crypt and answer else answer

    def _used(self, template: str) -> set[tuple[str, bool]]:
        """(key, wanted as a hash) of every question a template names."""
        return {(p[1], bool(p[2])) for p in _PLACE.finditer(template) if self.of(p[1]) is not None}

    def _only_hashed(self) -> set[str]:
        uses = {use for q in self.all for use in self._used(q.template)}
        return {key for key, crypt in uses if crypt and (key, False) not in uses}

    def _kind(self, key: str) -> str:
        found = self.of(key)
        return found.kind if found else ""


NONE = Questions(())


def loads(data: bytes) -> Questions:
    """Read configure.toml. Raises TrustError naming the question and key that is wrong."""
    if len(data) > MAX_SIZE:
        raise _bad(f"it is larger than {MAX_SIZE} bytes")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as wrong:
        raise _bad(f"it is not TOML: {str(wrong).splitlines()[0]}") from wrong
    entries = table.pop("question", [])
    if table:
        raise _bad(f"unknown key {min(table)!r}")
    if not isinstance(entries, list) or len(entries) > MAX_QUESTIONS:
        raise _bad(f"question must be a list of at most {MAX_QUESTIONS} tables")
    questions = tuple(_question(entry, number) for number, entry in enumerate(entries, 1))
    _once("key", (q.key for q in questions))
    _once("target", (q.target for q in questions if q.target))
    return Questions(questions)


def _once(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise _bad(f"two questions have the {what} {value!r}")
        seen.add(value)


def _question(raw: object, number: int) -> Question:
    where = f"question {number}"
    if not isinstance(raw, dict):
        raise _bad(f"{where} is no table")
    values: dict[str, Any] = dict(raw)
    for key, value in values.items():
        if key not in _TYPES:
            raise _bad(f"{where}: unknown key {key[:80]!r}")
        if type(value) is not _TYPES[key]:
            raise _bad(f"{where}: {key} is of the wrong type")
    choices = values.pop("choices", [])
    if not all(isinstance(c, str) and c and c.isprintable() for c in choices):
        raise _bad(f"{where}: choices must be lines of text")
    made = Question(
        kind=values.pop("type", "text"),
        choices=tuple(choices),
        target=_target(values.pop("target", ""), where),
        **{"key": "", "prompt": "", **values},
    )
    _check(made, where)
    return made


def _check(made: Question, where: str) -> None:
    if not _KEY.fullmatch(made.key):
        raise _bad(f"{where}: key can't be {made.key[:80]!r}")
    if not made.prompt or not made.prompt.isprintable() or len(made.prompt) > 500:
        raise _bad(f"{where}: prompt must be one line of text")
    if made.kind not in KINDS:
        raise _bad(f"{where}: type can't be {made.kind[:80]!r}")
    if (made.kind == "choice") != bool(made.choices):
        raise _bad(f"{where}: choices belong to a question of type choice, and only to one")
    if bool(made.target) != bool(made.template):
        raise _bad(f"{where}: target and template belong together")
    if made.default and made.kind == "password":
        raise _bad(f"{where}: a password has no default")
    try:
        if made.default:
            made.check(made.default)
    except CapsulekitError as wrong:
        raise _bad(f"{where}: default: {wrong.message}") from wrong


def _target(path: str, where: str) -> str:
    parts = path.split("/")[1:]
    wrong = path and (
        not path.startswith("/")
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or not path.isprintable()
        or len(path) > 1024
    )
    if wrong:
        raise _bad(f"{where}: target can't be {path[:80]!r}")
    return "/".join(parts)


def _bad(why: str) -> TrustError:
    return TrustError(f"malformed {MEMBER}: {why}")
