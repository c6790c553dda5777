"""The lease file of dnsmasq: expiry, MAC, address, host name or ``*``, client id (dnsmasq's lease.c, read_leases).

The addresses are left out: they were lent for some hours from the range for new machines, not fixed.
"""

from __future__ import annotations

import re
from pathlib import Path

from provisioner.importers._found import Found, Gathering, is_address, lines_of
from provisioner.registry.names import parse_name

ABOUT = "A lease file of dnsmasq: MAC and host name; the lent addresses stay free."
_OTHER_HARDWARE = re.compile(r"[0-9a-fA-F]{2}-([0-9a-fA-F]{2}:)+[0-9a-fA-F]{2}")


def read(source: Path) -> Found:
    """Every leased machine. Raises CapsulekitError naming the lines that are no leases."""
    got = Gathering(source)
    for where, line in lines_of(source):
        words = line.split()
        if words[0] == "duid":
            got.note("DHCPv6 leases are left out: they do not say the MAC")
            break
        if len(words) not in (4, 5) or not words[0].isdigit() or not is_address(words[2]):
            got.wrong(where, "not a lease: expiry, MAC, address, host name, client id")
        elif _OTHER_HARDWARE.fullmatch(words[1]):
            got.note(f"{where}: {words[1]} is not the MAC of an Ethernet card")
        else:
            got.machine(where, words[1], "" if words[3] == "*" else _name(got, where, words[3]))
    return got.done()


def _name(got: Gathering, where: str, name: str) -> str:
    """The name a machine gave itself; it may be anything, so one that no node can have is only left out."""
    from capsulekit.errors import CapsulekitError

    try:
        parse_name(name)
    except CapsulekitError:
        got.note(f"{where}: {name!r} is no node's name: the machine gets the next free one")
        return ""
    return name
