"""The command line, called in this process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from capsulekit.cli.main import main


class Done(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


def cli(*words: str | Path) -> Done:
    """Run one command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(word) for word in words])
    return Done(status, out.getvalue(), err.getvalue())
