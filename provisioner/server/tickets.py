"""The way from a boot script to a session: one-time tickets, session keys, and how often one address may ask.

The secrets leave this file only towards the node; the registry holds their sha256, the log nothing of them.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes
from provisioner.registry.registry import Registry

TICKET_BYTES = 16
KEY_BYTES = 32
TICKET_SECONDS = 300.0
# A session lasts until the node's next boot gets it a new one; a node may run for years and must not fall silent.
SESSION_SECONDS = 10 * 365 * 86400.0
TICKET = re.compile(r"[0-9a-f]{32}")
KEY = re.compile(r"[0-9a-f]{64}")
MOST_ADDRESSES = 4096


class TicketRefused(CapsulekitError):
    """A ticket that gives no session; ``reason`` is malformed, unknown, used, expired, mac or address."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"ticket refused: {reason}")
        self.reason = reason


def issue(registry: Registry, mac: str, addr: str) -> str:
    """A new ticket (32 hex digits) for a MAC, good once within five minutes and only from ``addr``."""
    ticket = secrets.token_hex(TICKET_BYTES)
    now = time.time()
    registry.add_ticket(_digest(ticket), mac, addr, now + TICKET_SECONDS)
    return ticket


def redeem(registry: Registry, ticket: str, mac: str, addr: str) -> None:
    """Use a ticket up. Raises TicketRefused, which leaves it as it was."""
    if not TICKET.fullmatch(ticket):
        raise TicketRefused("malformed")
    verdict = registry.redeem_ticket(_digest(ticket), mac, addr, time.time())
    if verdict is not True:
        raise TicketRefused(verdict)


def open_session(registry: Registry, mac: str, addr: str) -> str:
    """A new session key (64 hex digits) of a node; its earlier ones end."""
    key = secrets.token_hex(KEY_BYTES)
    registry.add_session(_digest(key), mac, addr, time.time() + SESSION_SECONDS)
    return key


def sessions_of(registry: Registry, authorizations: Sequence[str]) -> list[str | None]:
    """The NodeIDs that ``Authorization: Bearer KEY`` headers belong to, or None."""
    digests = [_digest_in(text) for text in authorizations]
    found = registry.sessions([digest for digest in digests if digest], time.time())
    return [found.get(digest) for digest in digests]


def _digest_in(authorization: str) -> str:
    """The digest of the key in a header, "" when there is none."""
    scheme, _, key = authorization.partition(" ")
    return _digest(key) if scheme.lower() == "bearer" and KEY.fullmatch(key) else ""


class RateLimiter:
    """A token bucket for each address: ``burst`` at once, then ``per_second``. Remembers the last few thousand."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, address: str) -> bool:
        """Take one; False when the address has none left."""
        now = self._clock()
        left, since = self._buckets.pop(address, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._rate)
        allowed = left >= 1
        self._buckets[address] = (left - 1 if allowed else left, now)
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return allowed


def _digest(secret: str) -> str:
    return sha256_bytes(secret.encode())
