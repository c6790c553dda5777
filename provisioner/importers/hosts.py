"""A hosts file (hosts(5)): fixed addresses for nodes by their names, as the Perceus manual gave them."""

from __future__ import annotations

from pathlib import Path

from capsulekit.errors import CapsulekitError
from provisioner.importers._found import Found, Gathering, is_address, lines_of

ABOUT = "A hosts file: fixed addresses of nodes that are registered, by their names."


def read(source: Path) -> Found:
    """Every name's address; names that are no node's are left out later. Raises CapsulekitError."""
    from ipaddress import ip_address

    got = Gathering(source)
    for where, line in lines_of(source):
        address, *names = line.split()
        if not is_address(address.partition("%")[0]):
            got.wrong(where, f"{address!r} is not an address")
        elif not names:
            got.wrong(where, "an address without a name")
        elif "%" in address or not _of_a_machine(ip_address(address).packed):
            continue  # localhost, ip6-allnodes and their like
        else:
            for name in names:
                if _may_be_a_node(name):
                    got.address(where, name, address)
                else:
                    got.note(f"{where}: {name!r} can be no node's name: left out")
    return got.done()


def _may_be_a_node(name: str) -> bool:
    from provisioner.registry.names import parse_name

    try:
        parse_name(name)
    except CapsulekitError:
        return False
    return True


def _of_a_machine(packed: bytes) -> bool:
    from ipaddress import ip_address

    address = ip_address(packed)
    return not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved
                or address.is_link_local)  # fmt: skip
