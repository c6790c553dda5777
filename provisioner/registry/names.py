"""The words of the registry and what they may look like: MACs, node names, groups, templates."""

from __future__ import annotations

import re
from collections.abc import Iterator

from capsulekit.errors import CapsulekitError

_HEX_PAIRS = re.compile(r"[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")
# RFC 1123, section 2.1: letters, digits, inner hyphens, at most 63 of them.
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def parse_mac(text: str) -> str:
    """The NodeID ("52:54:00:12:34:56") of a MAC in any case, with ``:`` or ``-``; raises CapsulekitError.

    A leading ``01`` (the hardware type PXELINUX puts into BOOTIF) is taken off. Multicast, broadcast and all-zero
    addresses are no machine's.
    """
    mac = text.strip()
    if len(mac) == 20 and mac[:2] == "01" and mac[2] in ":-":
        mac = mac[3:]
    if not _HEX_PAIRS.fullmatch(mac):
        raise CapsulekitError(f"{text!r} is not a MAC address", hint="six hex pairs: 52:54:00:12:34:56")
    mac = mac.upper().replace("-", ":")
    if mac == "00:00:00:00:00:00":
        raise CapsulekitError(f"{text} is the zero address, not a machine's MAC")
    if int(mac[:2], 16) & 1:
        raise CapsulekitError(f"{text} is a multicast address, not a machine's MAC")
    return mac


def parse_name(text: str) -> tuple[str, str]:
    """(host, cluster) of HOST[.CLUSTER]; cluster "" when not given. Raises CapsulekitError on anything else."""
    host, dot, cluster = text.partition(".")
    labels = [host, *(cluster.split(".") if dot else [])]
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise CapsulekitError(
            f"{text!r} is not a node name",
            hint="HOST or HOST.CLUSTER: letters, digits and inner hyphens, at most 63 characters a part",
        )
    if host.isdigit() or host.lower() == "localhost":
        # Programs read a bare number as an address, and everybody's localhost is himself.
        raise CapsulekitError(f"{text!r} cannot be the name of a node", hint="a name with a letter, not localhost")
    return host, cluster


def parse_group(text: str) -> str:
    """A group's name as it is; raises CapsulekitError when it holds anything but letters, digits, ``. _ -``."""
    if not _WORD.fullmatch(text) or len(text) > 64:
        raise CapsulekitError(f"{text!r} is not a group name", hint="letters, digits, dot, underscore, hyphen")
    return text


def parse_line(text: str) -> str:
    """One line of free text without blanks at its ends; raises CapsulekitError for anything else."""
    if not text.isprintable() or len(text) > 1500:
        raise CapsulekitError("the value must be one line of at most 1500 characters, without control characters")
    return text.strip()


def parse_address(text: str) -> str:
    """An IPv4 or IPv6 address of one machine as its standard spells it; raises CapsulekitError for anything else."""
    # Late: only whoever sets an address needs it.
    from ipaddress import ip_address

    try:
        address = ip_address(text.strip())
    except ValueError:
        raise CapsulekitError(f"{text!r} is not an IP address") from None
    if address.is_multicast or address.is_loopback or address.is_unspecified or "%" in text or address.is_reserved:
        raise CapsulekitError(f"{text} cannot be the address of a node")
    return str(address)


def template_names(template: str, first: int) -> Iterator[tuple[str, str]]:
    """(host, cluster) of every name a template like ``n####.new`` stands for, counting up from ``first``.

    Raises CapsulekitError when the host part does not hold exactly one run of ``#``.
    """
    host, _, cluster = template.partition(".")
    runs = re.findall(r"#+", host)
    if len(runs) != 1:
        raise CapsulekitError(
            f"node name template {template!r} needs one run of # in its host part",
            hint='defaults.toml: node_name = "n####.new"',
        )
    width = len(runs[0])
    parse_name(template.replace("#", "0"))
    for number in range(first, 10**width):
        yield host.replace(runs[0], str(number).zfill(width)), cluster
