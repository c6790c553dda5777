"""The check as a whole: read an image once, then ask every question about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initramfs_builder import record as written
from initramfs_builder.check.files import check_files
from initramfs_builder.check.libraries import check_libraries
from initramfs_builder.check.modules import check_modules
from initramfs_builder.check.problem import Problem
from initramfs_builder.check.record import Record, parse_record
from initramfs_builder.check.scripts import check_asked, check_scripts
from initramfs_builder.errors import CapsulekitError
from initramfs_builder.image import Image, read_facts

IMAGE = "stage1.img"


class ClosureError(CapsulekitError):
    """An image lacks something; ``problems`` says what."""

    def __init__(self, image: str, problems: tuple[Problem, ...]) -> None:
        things = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
        super().__init__(
            f"{image} would not boot: {things} missing",
            hint="add the package, binary, applet or module that brings it to the recipe",
            details=tuple(problem.text for problem in problems),
        )
        self.problems = problems


@dataclass(frozen=True)
class Verdict:
    """What a check has found: ``problems``, none of them when all is there, and what was looked at, by kind."""

    image: Image
    problems: tuple[Problem, ...]

    def refuse(self) -> None:
        """Raise ClosureError when there is a problem."""
        if self.problems:
            raise ClosureError(self.image.name, self.problems)

    @property
    def summary(self) -> str:
        """What was looked at, in words."""
        return ", ".join(f"{number} {name}" for name, number in self.counts.items())

    @property
    def record(self) -> dict[str, Any]:
        """For programs: the image, whether it is ``ok``, how much was looked at, and every problem with its chain."""
        problems = [problem.record for problem in self.problems]
        return {"image": self.image.name, "ok": not problems, "looked_at": self.counts, "problems": problems}

    @property
    def counts(self) -> dict[str, int]:
        """How much was looked at: entries, programs (libraries among them), scripts, modules."""
        facts = self.image.facts.values()
        return {
            "entries": len(self.image.facts),
            "programs": sum(fact.elf is not None for fact in facts),
            "scripts": sum((fact.data or b"").startswith(b"#!") for fact in facts),
            "modules": sum(fact.module is not None for fact in facts),
        }


def check_image(path: Path, record: Record | None = None) -> Verdict:
    """Check a finished image, or a folder's stage1.img. ``record`` is for one that holds none of its own (stage 2).

    Raises TrustError when the image is damaged, OSError when it cannot be read.
    """
    image = read_facts(path / IMAGE if path.is_dir() else path)
    return Verdict(image, check_facts(image, record))


def check_facts(image: Image, record: Record | None = None) -> tuple[Problem, ...]:
    """Every problem of an image, sorted, each once."""
    problems = [*check_files(image), *check_libraries(image), *check_scripts(image)]
    try:
        record = record or own_record(image)
        problems += check_modules(image, record)
        problems += check_asked(image, record.commands)
    except CapsulekitError as error:
        problems.append(Problem("record", (written.PATH,), error.message))
    return tuple(sorted(set(problems)))


def own_record(image: Image) -> Record:
    """The record in an image; raises CapsulekitError when there is none, or none that can be read."""
    fact = image.file(written.PATH) or image.file(written.PATH.removeprefix("usr/"))
    if fact is None:
        raise CapsulekitError("not in the image")
    return parse_record(fact.text, written.PATH)


def must_be_closed(path: Path, name: str, record: Record | None = None) -> None:
    """Refuse an image that lacks something; raises ClosureError, which calls it ``name`` and says everything."""
    if problems := check_image(path, record).problems:
        raise ClosureError(name, problems)
