"""The texts for dnsmasq and iPXE, as Jinja2 templates beside this file."""

from __future__ import annotations

from collections.abc import Sequence
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


def render(name: str, **values: str | int | Sequence[str]) -> str:
    """The text of template ``name``. Raises CapsulekitError when a value could start a line of its own."""
    for key, value in values.items():
        if not isinstance(value, int) and not "".join(value).isprintable():
            raise CapsulekitError(f"{key} can't be {value!r}: it must be one line of printable text")
    return _environment.get_template(name).render(values)
