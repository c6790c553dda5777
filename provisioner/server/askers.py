"""Whether a machine that asks to boot under a MAC has that MAC, as far as this master can see.

Three witnesses: on a wire of ours the kernel knows which MAC has the address that asks; where the addresses are given
here, dnsmasq knows to which MAC; and what asks on this machine itself is some user's. None of them stops a machine that
sends under another's MAC altogether.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from capsulekit.errors import CapsulekitError
from provisioner.netboot import peers
from provisioner.netboot.leases import LeaseFile
from provisioner.netboot.networks import Network
from provisioner.registry.registry import Registry
from provisioner.siteconf import SiteConfig


class AskRefused(CapsulekitError):
    """One asks under a MAC that is not its own. ``reason`` is neighbour, lease, no-lease or master.

    ``seen`` is the MAC that the witness names, "" when it names none; for the log, the peer is not told.
    """

    def __init__(self, reason: str, message: str, seen: str = "") -> None:
        super().__init__(message)
        self.reason, self.seen = reason, seen


@dataclass
class Askers:
    """The witnesses of one running server. ``config`` and ``networks`` give what it goes by at the moment."""

    config: Callable[[], SiteConfig]
    networks: Callable[[], Sequence[Network]]
    leases: LeaseFile  # not the network manager's own: each takes its own looks
    registry: Registry
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, mac: str, address: str, port: int) -> None:
        """Let the MAC ask from this end of a connection, or raise AskRefused; blocks for a few system calls."""
        config = self.config()
        if not config.check_mac:
            return
        way = peers.way_to(address)
        if way.local:
            _check_user(config, address, port)
            return
        seen = peers.neighbour(address, way.interface) if way.interface else ""
        if seen and seen != mac:
            raise AskRefused("neighbour", "on this network the address that asks is another machine's", seen)
        if not self._is_given_here(config, address):
            return
        given = self._given_to(address)
        if given and given != mac:
            raise AskRefused("lease", "the address that asks was given to another machine", given)
        if not given and not seen:
            raise AskRefused("no-lease", "the address that asks was given to nobody")

    def _is_given_here(self, config: SiteConfig, address: str) -> bool:
        """Whether such an address is our DHCP's to give. DHCPv6 goes by a machine, not by a card: it tells no MAC."""
        if config.dhcp != "own" or ":" in address:
            return False
        return any(ip_address(address) in net.network for net in self.networks())

    def _given_to(self, address: str) -> str:
        """The MAC that has the lease, of our own dnsmasq or of another master's; "" when nobody has."""
        with self._lock:
            self.leases.look()
            found = self.leases.known.get(address)
        if found:
            return found.mac
        lease = self.registry.lease_of(address)
        return lease.nodeid if lease and lease.expires > time.time() else ""


def _check_user(config: SiteConfig, address: str, port: int) -> None:
    """On the master itself root may ask for any node, others for none; a site on loopback has nobody else to ask."""
    if ip_address(config.ip).is_loopback:
        return
    if peers.local_user(address, port) not in (0, os.geteuid()):
        raise AskRefused("master", "it was asked on the master itself, and not by root")
