"""dnsmasq's files on disk: written whole, tried by dnsmasq before they are used, and only when they differ.

A changed list asks for a reload (HUP); a changed main file, which dnsmasq reads only once, for a restart. Two processes
read them: one gives addresses and boot files, the other names.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from capsulekit.files import atomic_write
from provisioner.netboot.dnsmasq import check_config

MAIN, NAMES_MAIN = "dnsmasq.conf", "dns.conf"
HOSTS, NAMES, UPSTREAM = "dhcp-hosts", "hosts", "upstream"
OF_NAMES = (NAMES_MAIN, NAMES, UPSTREAM)


def changed(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Those of the files (name → text) that are not like that in ``folder`` yet."""
    return {name: text for name, text in texts.items() if _read(folder / name) != text}


def try_files(texts: Mapping[str, str]) -> None:
    """Have dnsmasq read files without acting on them. Raises CapsulekitError naming what it refuses.

    Its own test leaves out the lists, so their lines are given to it as lines of a main file.
    """
    lines = {name: texts.get(name, "").splitlines() for name in (MAIN, NAMES_MAIN)}
    lines[MAIN] += [f"dhcp-host={line}" for line in texts.get(HOSTS, "").splitlines()]
    lines[NAMES_MAIN] += texts.get(UPSTREAM, "").splitlines()
    folder = Path(tempfile.mkdtemp(prefix="capsulekit-dnsmasq."))
    try:
        for name, some in lines.items():
            if some:
                (folder / name).write_text("".join(f"{line}\n" for line in some), encoding="utf-8")
                check_config(folder / name)
    finally:
        shutil.rmtree(folder)


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files (name → text), each in one step."""
    for name, text in texts.items():
        atomic_write(folder / name, text.encode())


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
