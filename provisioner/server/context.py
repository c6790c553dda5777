"""What every request handler can reach: the site's desk, its limits, its counters."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

from provisioner.netboot.siteimg import SiteImage
from provisioner.server.askers import Askers
from provisioner.server.desk import Desk
from provisioner.server.gather import Gather, Writes
from provisioner.server.tickets import RateLimiter, sessions_of

MAC: web.RequestKey[str] = web.RequestKey("mac", str)  # the NodeID whose session key the request carried
HOLD_SECONDS = 25.0
POLL_SECONDS = 1.0


@dataclass
class Site:
    """One running site. ``hold`` and ``poll`` are seconds: how long a waiting node's request is kept, and looked at.

    ``askers`` checks who asks under which MAC; None: nobody is checked.
    ``joined`` is set when a node was added, so that its name reaches DHCP at once.
    """

    desk: Desk
    image: SiteImage
    askers: Askers | None = None
    # A boot asks once or twice; a hundred nodes behind one router's address still get through.
    limiter: RateLimiter = field(default_factory=lambda: RateLimiter(per_second=5.0, burst=60))
    counters: Counter[str] = field(default_factory=Counter)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    hold: float = HOLD_SECONDS
    poll: float = POLL_SECONDS

    # Lists of files that are being read: each may be megabytes. And whose: a node sends one at a time.
    trees: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))
    sending: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        registry = self.desk.registry
        self.writes = Writes(registry.db)
        # An Authorization header → the NodeID, or None. Asked anew each time: a session may end on another master.
        self.sessions: Gather[str, str | None] = Gather(lambda headers: sessions_of(registry, headers))
        # (NodeID, state) → what a running node shall do.
        self.state_plans: Gather[tuple[str, str], str] = Gather(self.desk.state_plans)

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter; labels are words of our own, never a peer's."""
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        self.counters[f"capsulekit_{name}_total" + (f"{{{inner}}}" if inner else "")] += 1

    @property
    def base(self) -> str:
        """http://ADDRESS:PORT of the plain half."""
        return self.desk.config.plain_url


SITE: web.AppKey[Site] = web.AppKey("site", Site)
