"""The systemd unit of ``capsulekit serve``: told when it is ready, given no more than it needs (systemd.exec(5))."""

from __future__ import annotations

import sys
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.templates import render
from provisioner.sitefiles import Change, whole

TARGET = Path("/etc/systemd/system/capsulekit.service")
UNIT = "capsulekit"
AFTER = "To start it now and at every boot: systemctl daemon-reload && systemctl enable --now capsulekit"


def program() -> Path:
    """The ``capsulekit`` of this very installation. Raises CapsulekitError when it was never installed."""
    path = Path(sys.executable).with_name("capsulekit")
    if not path.is_file():
        raise CapsulekitError(f"there is no program {path}", hint="install capsulekit, then run this with it")
    return path


def changes(paths: SitePaths, target: Path = TARGET) -> list[Change | None]:
    """The unit, with this site's folders in it."""
    start = [str(program()), "--config-dir", str(paths.config), "--state-dir", str(paths.state), "serve"]
    text = render(
        "capsulekit.service.j2",
        start=" ".join(map(_quoted, start)),
        writable=f"{_quoted(str(paths.config))} {_quoted(str(paths.state))}",
    )
    return [whole(target, text)]


def _quoted(word: str) -> str:
    """A word as systemd reads it (systemd.syntax(7), systemd.service(5): % and $ are special everywhere)."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if " " in word or "'" in word or '"' in word else word
