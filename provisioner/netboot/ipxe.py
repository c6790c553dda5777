"""What iPXE is told: the fixed script that asks for a node's own one, and that one, which carries a ticket.

A failing line ends the boot script, and the fixed script then asks again after a pause: with a new ticket.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from capsulekit.files import atomic_file, atomic_write
from provisioner.netboot.templates import render

# Where Debian's package `ipxe` keeps the programs that firmware chainloads.
IPXE_PROGRAMS = Path("/usr/lib/ipxe")
PROGRAMS = ("undionly.kpxe", "ipxe.efi")


def boot_script(base: str, mac: str, ticket: str, kargs: str) -> str:
    """The script for one node. ``base`` is http://ADDRESS:PORT, ``kargs`` the site's kernel arguments of stage 1."""
    return render("boot.ipxe.j2", base=base, mac=mac, ticket=ticket, kargs=kargs)


def write_tftp(folder: Path, base: str, programs: Path = IPXE_PROGRAMS) -> Sequence[str]:
    """Fill TFTP's folder: chain.ipxe, and the iPXE programs that this machine has; returns the names it lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "chain.ipxe", render("chain.ipxe.j2", base=base).encode())
    missing = []
    for name in PROGRAMS:
        try:
            with (programs / name).open("rb") as source, atomic_file(folder / name) as out:
                shutil.copyfileobj(source, out)
        except FileNotFoundError:
            missing.append(name)
    return missing
