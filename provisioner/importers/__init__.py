"""What nodes can be imported from: every public file here is one kind, found by its name.

Each has ``ABOUT`` (one line of help) and ``read(source) -> Found``, which looks at nothing but the source and raises
CapsulekitError naming every line it cannot take.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from capsulekit.errors import UsageError
from provisioner.importers._found import Found


class Importer(Protocol):
    """One kind of source."""

    ABOUT: str

    def read(self, source: Path) -> Found:
        """Everything the source says of nodes. Raises CapsulekitError."""
        ...


def kinds() -> list[str]:
    """The kinds as the command line spells them, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def importer(kind: str) -> Importer:
    """The importer of one kind. Raises UsageError for an unknown one."""
    if kind not in kinds():
        raise UsageError(f"nothing is known of {kind!r}", hint="known: " + ", ".join(kinds()))
    return cast(Importer, import_module(f"{__name__}.{kind.replace('-', '_')}"))
