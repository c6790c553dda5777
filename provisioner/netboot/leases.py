"""dnsmasq's file of leases, read while dnsmasq writes it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
# RFC 8415, 11.2 and 11.4: a DUID that holds an Ethernet address, after a time or not.
_DUID = re.compile(r"00:(01:00:01(:[0-9a-f]{2}){4}|03:00:01):(?P<mac>([0-9a-f]{2}:){5}[0-9a-f]{2})")
FOREVER = 253402300799.0  # the year 9999: dnsmasq writes 0 for a lease without an end


@dataclass(frozen=True)
class FoundLease:
    """One lease: ``mac`` as registries spell it, ``hostname`` "" when dnsmasq knows none, ``expires`` epoch seconds."""

    mac: str
    address: str
    hostname: str
    expires: float


def parse_leases(text: str) -> list[FoundLease]:
    """The leases in the file's text; lines that are none (the server's DUID, a torn last line) are left out."""
    found = (_lease(line) for line in text.splitlines(keepends=True))
    return [lease for lease in found if lease is not None]


@lru_cache(1 << 15)  # of a file that changes all the time nearly all lines are the same
def _lease(line: str) -> FoundLease | None:
    words = line.split()
    if len(words) != 5 or not line.endswith("\n") or not words[0].isdecimal():
        return None
    try:
        address = ip_address(words[2])
    except ValueError:
        return None
    told = words[1].lower() if address.version == 4 else _mac_of(words[4].lower())
    if not _MAC.fullmatch(told):
        return None  # no Ethernet, or a DUID without a MAC
    name = words[3].partition(".")[0]
    host = name if _HOST.fullmatch(name) else ""
    return FoundLease(told.upper(), str(address), host, float(words[0]) or FOREVER)


def _mac_of(duid: str) -> str:
    match = _DUID.fullmatch(duid)
    return match["mac"] if match else ""


@dataclass
class LeaseFile:
    """The file, looked at again and again; a look costs one ``stat`` while nothing changed.

    dnsmasq empties the file and writes it anew, so a look may see its beginning only. What is there is believed at
    once; that a lease is gone, only when a second look saw the very same file.
    """

    path: Path
    known: dict[str, FoundLease] = field(default_factory=dict)  # by address
    _seen: tuple[int, int, int] = (0, 0, 0)
    _twice: bool = True

    def look(self) -> tuple[list[FoundLease], list[FoundLease]]:
        """(new or changed, gone) since the last look."""
        before = self._stamp()
        if before == self._seen and self._twice:
            return [], []
        try:
            found = {lease.address: lease for lease in parse_leases(self.path.read_text("utf-8", "replace"))}
        except FileNotFoundError:
            found = {}
        self._twice = before == self._seen == self._stamp()
        self._seen = before
        new = [lease for address, lease in found.items() if self.known.get(address) != lease]
        gone = [lease for address, lease in self.known.items() if address not in found] if self._twice else []
        self.known |= {lease.address: lease for lease in new}
        for lease in gone:
            del self.known[lease.address]
        return new, gone

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self.path)  # noqa: PTH116 - one call, no object
        except FileNotFoundError:
            return (0, 0, 0)
        return (found.st_ino, found.st_size, found.st_mtime_ns)
