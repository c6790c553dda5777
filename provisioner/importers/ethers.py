"""An ethers file (ethers(5)), also the one that Perceus wrote: MAC, then a host name or an address."""

from __future__ import annotations

from pathlib import Path

from provisioner.importers._found import Found, Gathering, is_address, lines_of

ABOUT = "An ethers file: MAC and host name, or MAC and address."


def read(source: Path) -> Found:
    """Every line's machine. Raises CapsulekitError naming the lines that are none."""
    got = Gathering(source)
    read_into(got, source)
    return got.done()


def read_into(got: Gathering, source: Path) -> None:
    """The same for an importer that reads several files."""
    for where, line in lines_of(source):
        words = line.split()
        if len(words) != 2:
            got.wrong(where, "not a MAC and a host name")
        elif is_address(words[1]):
            got.machine(where, words[0], address=words[1])
        else:
            got.machine(where, words[0], words[1])
