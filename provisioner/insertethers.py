"""Machines that ask for an address become nodes, in the order in which they were switched on."""

from __future__ import annotations

import time
from collections.abc import Iterator

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.sitepaths import SitePaths
from provisioner.netboot.dhcpwire import asking
from provisioner.registry.defaults import load_defaults
from provisioner.registry.model import Node
from provisioner.registry.registry import DuplicateNode, Registry
from provisioner.siteconf import load_site


def insert(
    paths: SitePaths,
    registry: Registry,
    interface: str | None,
    *,
    count: int | None,
    timeout: float | None,
    dry_run: bool = False,
) -> Iterator[Node]:
    """Add each machine that asks by DHCP and is not registered, and give its node at once.

    Ends after ``count`` new machines or ``timeout`` seconds; one of them must be said. Raises UsageError when neither
    is, CapsulekitError when the time is over before ``count``, or the interface can't be listened to.
    """
    if count is None and timeout is None:
        raise UsageError("it would never end", hint="say --count N, --timeout SECONDS, or both")
    site = load_site(paths)
    if site.six and interface is None:
        raise CapsulekitError("DHCPv6 does not say the MAC: machines of an IPv6 site can't be found by it")
    end = None if timeout is None else time.monotonic() + timeout
    seen: set[str] = set()
    added = 0
    for message in asking(interface or site.interface, None if end is None else end - time.monotonic()):
        if message.mac in seen:
            continue
        seen.add(message.mac)
        try:
            with registry.db.rehearsal(dry_run):
                node = registry.add_node(message.mac, defaults=load_defaults(paths))
        except DuplicateNode:
            continue  # registered, perhaps by serve, which heard the same packet
        yield node
        added += 1
        if added == count:
            return
    if count is not None:
        raise CapsulekitError(f"{added} of {count} machines asked within {timeout:g} s")
