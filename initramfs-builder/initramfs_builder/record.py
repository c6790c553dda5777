"""What an image of stage 1 says of itself, for those who check it or choose between several: stage1.json.

It lies in the image and beside it. ``commands`` and ``modules`` are the names (and globs) that were asked for;
``firmware_missing`` lists what modules name and the image has not, by choice or because no package brings it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

FORMAT = 1
PATH = "usr/lib/capsulekit/stage1.json"


def record(
    arch: str,
    profile: str,
    release: str,
    commands: Iterable[str],
    modules: Iterable[str],
    missing: Iterable[tuple[str, str]],
) -> bytes:
    """The record as bytes, which depend on the arguments alone; ``missing`` is (module, firmware)."""
    told = {
        "format": FORMAT,
        "arch": arch,
        "release": release,
        "profile": profile,
        "commands": sorted(set(commands)),
        "modules": sorted(set(modules)),
        "firmware_missing": [{"module": module, "firmware": name} for module, name in sorted(set(missing))],
    }
    return (json.dumps(told, indent=1) + "\n").encode()
