"""Package files: their control text and their contents, read by dpkg-deb; nothing of a package is run."""

from __future__ import annotations

import re
from pathlib import Path

from capsulekit.files import atomic_write, remove_parts
from capsulekit.run import run


def control(deb: Path) -> str:
    """The package's control stanza; kept beside the package, which is named by its digest."""
    kept = deb.with_suffix(".control")
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    text = read_control(deb)
    remove_parts(kept)  # of a build that was killed here
    atomic_write(kept, text.encode())
    return text


def read_control(deb: Path) -> str:
    """The package's control stanza, out of the package. Raises CommandFailed when it is none."""
    return run(["dpkg-deb", "-f", deb], purpose="read a package's control file")


def installed_size(control: str) -> int:
    """About how many bytes a package takes once installed; 0 when its control text does not say (policy 5.6.20)."""
    found = re.search(r"^Installed-Size: (\d+)$", control, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def unpack(deb: Path, folder: Path) -> None:
    """Unpack the package's files below ``folder``."""
    run(["dpkg-deb", "-x", deb, folder], purpose="unpack a package")


def dpkg_version() -> str:
    """dpkg's version: its tools write a few bytes of the root's database."""
    return run(["dpkg-deb", "--version"], purpose="unpack packages").split("version ")[1].split()[0]
