"""Checks the shell scripts of a recipe with shellcheck before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from capsulekit.errors import CapsulekitError
from capsulekit.recipe.model import Script
from capsulekit.run import PLAIN, CommandFailed, run

PURPOSE = "check a recipe's scripts"
# shellcheck(1): it ran well and has something to say.
FINDINGS = 1


def check_scripts(scripts: Iterable[Script]) -> tuple[str, ...]:
    """What shellcheck warns of in POSIX shell scripts, one line each: NAME:LINE: text.

    Raises CapsulekitError when a script has an error, such as one that cannot be parsed, and ToolMissing when there is
    a script and no shellcheck. A ``# shellcheck disable`` of the author's counts.
    """
    warnings: list[str] = []
    errors: list[str] = []
    for script in scripts:
        for found in _findings(script):
            line = f"{script.name}:{found['line']}: {found['message']} (SC{found['code']})"
            (errors if found["level"] == "error" else warnings).append(line)
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise CapsulekitError(f"the script {errors[0]}{more}", hint="correct it, or say why it is right: shellcheck(1)")
    return tuple(warnings)


def _findings(script: Script) -> list[dict[str, Any]]:
    # No settings of the author's machine: the same recipe is judged the same everywhere.
    argv = ["shellcheck", "--norc", "-s", "sh", "-S", "warning", "-f", "json1", "-"]
    try:
        out = run(argv, purpose=PURPOSE, env={**PLAIN, "LC_ALL": "C.UTF-8"}, stdin=script.data)
    except CommandFailed as failed:
        if failed.status != FINDINGS:
            raise
        out = failed.output
    comments: list[dict[str, Any]] = json.loads(out)["comments"]
    return comments
