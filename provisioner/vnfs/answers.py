"""Where answers come from and where they are kept: an admin's file, the last time's, and the generation's folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import read_bounded
from provisioner.vnfs.questions import Answers, Questions

MAX_FILE = 1 << 20  # bytes
HEAD = "# The answers this capsule was configured with; change them with: capsulekit vnfs configure\n"


def read_answers(path: Path) -> dict[str, str]:
    """An admin's file: KEY = "answer" a line (TOML); numbers and true or false are taken as such.

    Raises UsageError for a file that is none, or is too long. What the keys mean is checked by ``check_answers``.
    """
    try:
        data = read_bounded(path, MAX_FILE)
    except CapsulekitError as wrong:
        raise UsageError(f"--answers: {wrong.message}") from wrong
    if len(data) > MAX_FILE:
        raise UsageError(f"--answers {path} is larger than {MAX_FILE} bytes")
    return _loads(data, f"--answers {path}")


def check_answers(path: Path, given: Answers, questions: Questions) -> None:
    """Each key is a question of this capsule; a file with passwords is its owner's alone. Raises UsageError."""
    known = {q.key for q in questions.all}
    unknown = sorted(set(given) - known)
    if unknown:
        hint = "it asks: " + ", ".join(sorted(known)) if known else "it asks nothing"
        raise UsageError(f"--answers {path} answers {unknown[0]!r}, which this capsule does not ask", hint=hint)
    secret = sorted(questions.secrets() & {key for key, value in given.items() if value})
    if secret and path.stat().st_mode & 0o077:
        raise UsageError(
            f"--answers {path} holds a password ({secret[0]}) and others may read it", hint=f"chmod 600 {path}"
        )


def dump_answers(answers: Answers) -> bytes:
    """What is kept beside a generation."""
    # JSON's strings are TOML's basic strings; answers hold no control characters.
    import json

    return (
        HEAD + "".join(f"{key} = {json.dumps(answers[key], ensure_ascii=False)}\n" for key in sorted(answers))
    ).encode()


def load_answers(data: bytes, where: str) -> dict[str, str]:
    """Read what ``dump_answers`` wrote. Raises CapsulekitError when somebody damaged it."""
    return _loads(data, where)


def _loads(data: bytes, where: str) -> dict[str, str]:
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as wrong:
        # The parser's own words may quote the line, and with it a password.
        place = str(wrong).rpartition("(")[2].rstrip(")") if "(at " in str(wrong) else "somewhere"
        raise UsageError(f"{where} is not TOML ({place})", hint='one KEY = "answer" a line') from None
    found = {}
    for key, value in table.items():
        if isinstance(value, bool):
            found[key] = "yes" if value else "no"
        elif isinstance(value, str | int):
            found[key] = str(value)
        else:
            raise UsageError(f"{where}: {key[:80]!r} must be one line of text")
    return found


def kept_answers(path: Path) -> dict[str, str]:
    """The answers beside a generation, {} where nothing was answered. Raises CapsulekitError."""
    try:
        return load_answers(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}
    except OSError as wrong:
        raise CapsulekitError(f"can't read {path}: {wrong.strerror}") from wrong
