"""Pretend nodes that boot and report without end, each by the real protocol at whichever master answers.

A program of its own, for it runs in a namespace: ``pretend_nodes.py CA SOURCE COUNT live|race HTTP=HTTPS…``, from
the address SOURCE, one pair of base URLs a master. What a master has acknowledged is printed, ``MAC STEP MASTER``.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from dataclasses import dataclass

import aiohttp

STEPS = 25  # of one boot
SECONDS = aiohttp.ClientTimeout(total=10)


class NotNow(Exception):
    """A master was asked in vain: it is gone, restarting, has no registry, or too many asked."""


@dataclass
class Node:
    """One pretend node. It takes another master for each request."""

    mac: str
    masters: list[tuple[str, str]]
    http: aiohttp.ClientSession
    key: str = ""
    turn: int = 0

    async def live(self) -> None:
        """Boot and report until cancelled."""
        number = 0
        while True:
            try:
                if number % STEPS == 0:
                    await self.boot()
                number += 1
                await self.post("/v1/progress", step=f"s{number}", status="ok")
                print(self.mac, f"s{number}", self.turn % len(self.masters), flush=True)
            except (NotNow, aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(0.05)

    async def boot(self) -> None:
        """A ticket of one master, redeemed at the next."""
        self.key = ""
        ticket = await self.ticket()
        self.key = (await self.post("/v1/session", ticket=ticket, mac=self.mac)).split()[1]
        assert (await self.post("/v1/state/init")).endswith("end\n")
        await self.post("/v1/state/handoff", uptime="1")
        await self.post("/v1/state/ready")

    async def ticket(self) -> str:
        """One from the boot script."""
        script = await self.ask("GET", 0, f"/v1/boot.ipxe?mac={self.mac}")
        return next(word for word in script.split() if word.startswith("ck.ticket=")).partition("=")[2]

    async def post(self, path: str, **form: str) -> str:
        """A form, by TLS."""
        return await self.ask("POST", 1, path, **form)

    async def ask(self, method: str, port: int, path: str, **form: str) -> str:
        """The next master's answer, or that of the one after it where nobody is. Raises NotNow."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        for _ in self.masters:
            self.turn += 1
            url = self.masters[self.turn % len(self.masters)][port] + path
            try:
                async with self.http.request(method, url, data=form or None, headers=headers) as answer:
                    return self.checked(path, answer.status, await answer.text())
            except aiohttp.ClientConnectorError:
                continue
        raise NotNow

    def checked(self, path: str, status: int, text: str) -> str:
        """The answer, where it is one. A refusal would be the masters' mistake: only their absence is expected."""
        # A ticket may have been redeemed by a master that was killed before it could say so.
        if status in (429, 500, 503) or (status == 403 and path == "/v1/session"):
            raise NotNow(text)
        assert status == 200, (path, status, text)
        return text


async def race(node: Node) -> list[int]:
    """Redeem one ticket at all masters at once; their statuses."""
    ticket = await node.ticket()

    async def redeem(base: str) -> int:
        async with node.http.post(f"{base}/v1/session", data={"ticket": ticket, "mac": node.mac}) as answer:
            await answer.read()
            return answer.status

    return sorted(await asyncio.gather(*(redeem(base) for _, base in node.masters)))


async def run(ca: str, source: str, count: int, masters: list[tuple[str, str]], what: str) -> None:
    """``what`` is live (until killed) or race (a line of statuses for each node)."""
    tls = ssl.create_default_context(cafile=ca)
    connector = aiohttp.TCPConnector(ssl=tls, local_addr=(source, 0), force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=SECONDS) as http:
        kind = "BB" if what == "live" else "CC"
        nodes = [Node(f"52:54:00:{kind}:00:{number:02X}", masters, http, turn=number) for number in range(count)]
        if what == "live":
            await asyncio.gather(*(node.live() for node in nodes))
        for node in nodes:
            print(*await race(node), flush=True)


if __name__ == "__main__":
    pairs = [(one.partition("=")[0], one.partition("=")[2]) for one in sys.argv[5:]]
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), pairs, sys.argv[4]))
