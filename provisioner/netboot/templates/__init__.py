"""The texts for dnsmasq and iPXE, as Jinja2 templates beside this file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from capsulekit.errors import CapsulekitError

# No HTML is made here, so no escaping: values are checked to be single lines of printable text instead.
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701
)


def render(name: str, **values: object) -> str:
    """The text of template ``name``; values are texts, numbers, and lists and dataclasses of them.

    Raises CapsulekitError when a text could start a line of its own.
    """
    for key, value in values.items():
        for text in _texts(value):
            if not text.isprintable():
                raise CapsulekitError(f"{key} can't be {text!r}: it must be one line of printable text")
    return _environment.get_template(name).render(values)


def _texts(value: object) -> Iterator[str]:
    """Every text within a value, at any depth."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _texts(getattr(value, field.name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from _texts(one)
    else:
        yield str(value)
