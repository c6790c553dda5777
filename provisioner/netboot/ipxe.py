"""What iPXE is told: the fixed script that asks for a node's own one, and that one, which carries a ticket.

A failing line ends the boot script, and the fixed script then asks again after a pause: with a new ticket.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from capsulekit.files import atomic_file, atomic_write
from provisioner.netboot.stage1 import ARCHES
from provisioner.netboot.templates import render

# Where Debian's package `ipxe` keeps the programs that firmware chainloads.
IPXE_PROGRAMS = Path("/usr/lib/ipxe")
PROGRAMS = ("undionly.kpxe", "ipxe.efi")


def boot_script(base: str, mac: str, ticket: str, kargs: str, arches: Collection[str]) -> str:
    """The script for one node. ``base`` is http://ADDRESS:PORT, ``kargs`` the site's kernel arguments of stage 1.

    Without a ``ticket`` stage 1 asks for one itself.
    It takes the stage 1 that fits the processor; on one that is none of ``arches`` it says so, and ends after a while.
    """
    lacking = [arch for arch in ARCHES if arch not in arches]
    return render("boot.ipxe.j2", base=base, mac=mac, ticket=ticket, kargs=kargs, lacking=lacking)


def refusing_script(mac: str, address: str, why: str) -> str:
    """What a machine is told on its screen that may not boot under this MAC; it asks again after a minute."""
    return render("refused.ipxe.j2", mac=mac, address=address, why=why)


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
