"""What the commands of ``capsulekit vnfs`` share: the opened store, and asking a capsule's questions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsulekit.errors import CapsulekitError, UsageError

if TYPE_CHECKING:
    from capsulekit.cli.main import Options
    from provisioner.vnfs.questions import Answers, Question, Questions
    from provisioner.vnfs.store import Ask, VnfsStore

DRY_RUN = click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")


def _text(_ctx: click.Context, param: click.Parameter, value: str) -> str:
    """An option's text, which is kept in the registry. Raises UsageError for bytes that are no text."""
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise UsageError(f"--{param.name} is no text in UTF-8")
    return value


MESSAGE = click.option(
    "--message", "-m", metavar="TEXT", default="", callback=_text, help="Kept in the capsule's history."
)
ANSWERS = click.option(
    "--answers",
    "answers",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='Answers to its questions, KEY = "answer" a line (TOML).',
)


@contextmanager
def opened_store(options: Options) -> Iterator[VnfsStore]:
    """The site's capsules."""
    from provisioner.cli._site import open_site
    from provisioner.vnfs.store import VnfsStore

    registry = open_site(options)
    try:
        yield VnfsStore(options.paths, registry)
    finally:
        registry.close()


def warn_of_edit(options: Options, name: str) -> None:
    """After a capsule was changed: say when somebody has it mounted, whose umount will be refused now."""
    from provisioner.vnfs.edits import warning

    if text := warning(options.paths, name):
        click.echo(f"WARNING: {text}", err=True)


def asking(options: Options, file: Path | None) -> Ask:
    """Finds the answers out: those of the file, then the terminal's; -y takes what is known for the rest."""
    from provisioner.vnfs.answers import check_answers, read_answers

    given = read_answers(file) if file is not None else {}

    def ask(questions: Questions, known: Answers) -> Answers:
        if file is not None:
            check_answers(file, given, questions)
        found = {**known, **given}
        rest = [question for question in questions.all if question.key not in given]
        if options.yes or not rest:
            return found
        if not sys.stdin.isatty():
            raise CapsulekitError(
                "questions without an answer: " + ", ".join(question.key for question in rest),
                hint="give answers in a file, --answers FILE, or take the defaults with -y",
            )
        return {**found, **{question.key: _ask_one(question, known.get(question.key, "")) for question in rest}}

    return ask


def _ask_one(question: Question, known: str) -> str:
    """One question at the terminal, until its answer will do."""
    while True:
        try:
            return question.check(_password(question, known) if question.kind == "password" else _line(question, known))
        except CapsulekitError as wrong:
            click.echo(f"{wrong.message}" + (f" ({wrong.hint})" if wrong.hint else ""), err=True)


def _line(question: Question, known: str) -> str:
    choices = {"yesno": " (yes/no)", "choice": f" ({', '.join(question.choices)})"}.get(question.kind, "")
    default = f" [{known}]" if known else ""
    click.echo(f"{question.prompt}{choices}{default}: ", nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise click.Abort
    answer = line.rstrip("\r\n").strip()
    # One dash takes an answer away that was given before.
    return "" if answer == "-" and not question.required else answer or known


def _password(question: Question, known: str) -> str:
    note = " [unchanged]" if known else ""
    answer: str = click.prompt(f"{question.prompt}{note}", hide_input=True, err=True, default="", show_default=False)
    if not answer:
        return known
    if answer == "-" and not question.required:
        return ""
    again: str = click.prompt("Again", hide_input=True, err=True, default="", show_default=False)
    if again != answer:
        raise CapsulekitError("the two passwords are not the same")
    return answer
