"""The load of `make bench ONLY=checkins`: so many agents at once, each reporting again as soon as it is answered.

One thread and epoll around OpenSSL's own sockets: it shares the machine with the server, so it must cost little.
"""

from __future__ import annotations

import argparse
import json
import math
import select
import socket
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

BODY = b"uptime=86400.12&mem_used_kb=812345"
LONGEST = 30.0  # seconds for one check-in: what the agent allows its curl


@dataclass
class Load:
    """What is asked of one server, and how it went. Times are seconds."""

    host: str
    port: int
    tls: ssl.SSLContext
    keys: list[str]
    kept: bool
    poll: select.epoll = field(default_factory=select.epoll)
    agents: dict[int, Agent] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    begun: int = 0
    end: float = math.inf  # monotonic

    def run(self, seconds: float, at_once: int) -> float:
        """Keep ``at_once`` check-ins under way for so long, wait for the last; returns how long it all took.

        The clock runs, and all is counted, from when as many have been answered: by then all kept connections are made.
        """
        start = 0.0
        for _ in range(at_once):
            Agent(self).begin()
        while self.agents and time.monotonic() < self.end + LONGEST:
            for number, _ in self.poll.poll(1.0):
                agent = self.agents[number]
                if agent.go_on():
                    self._next(agent, time.monotonic() < self.end)
            if not start and len(self.took) + self.failed.total() >= at_once:
                start = time.monotonic()
                self.end = start + seconds
                self.took.clear()
        self.failed["no answer"] += len(self.agents)
        return time.monotonic() - start

    def next_key(self) -> str:
        """The key of the node whose turn it is."""
        self.begun += 1
        return self.keys[self.begun % len(self.keys)]

    def _next(self, agent: Agent, more: bool) -> None:
        """Note how one check-in ended; the same again unless the time is over."""
        if agent.error:
            self.failed[agent.error] += 1
        else:
            self.took.append(time.monotonic() - agent.since)
        if agent.error or not self.kept or not more:
            agent.end()
            agent = Agent(self)
        if more:
            agent.begin()


class Agent:
    """One agent's connection: connects, shakes hands, asks, reads, as far as that goes without waiting."""

    def __init__(self, load: Load) -> None:
        self.load, self.error, self.since = load, "", 0.0
        self.socket: ssl.SSLSocket | None = None

    def begin(self) -> None:
        """Begin a check-in, on the connection there is or on a new one."""
        self.since, self.error = time.monotonic(), ""
        close = b"" if self.load.kept else b"Connection: close\r\n"
        self.left = (
            b"POST /v1/state/ready HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n%s"
            b"Authorization: Bearer %s\r\nContent-Length: %d\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
            % (self.load.host.encode(), self.load.port, close, self.load.next_key().encode(), len(BODY))
        ) + BODY
        self.got = b""
        if self.socket is None:
            raw = socket.socket()
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.connect_ex((self.load.host, self.load.port))
            self.socket, self.shaken = raw, False  # type: ignore[assignment]
            self.load.agents[raw.fileno()] = self
            self.load.poll.register(raw.fileno(), select.EPOLLOUT)
        else:
            self.load.poll.modify(self.socket.fileno(), select.EPOLLOUT)

    def go_on(self) -> bool:
        """As far as it goes now; True when the check-in has ended, ``error`` then says how."""
        try:
            return self._steps()
        except ssl.SSLWantReadError:
            self.load.poll.modify(self.socket.fileno(), select.EPOLLIN)  # type: ignore[union-attr]
        except ssl.SSLWantWriteError:
            self.load.poll.modify(self.socket.fileno(), select.EPOLLOUT)  # type: ignore[union-attr]
        except OSError as error:
            self.error = type(error).__name__
            return True
        return False

    def _steps(self) -> bool:
        assert self.socket is not None
        if not isinstance(self.socket, ssl.SSLSocket):
            if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, "connect")
            self.load.poll.unregister(self.socket.fileno())
            number = self.socket.fileno()
            self.socket = self.load.tls.wrap_socket(
                self.socket, do_handshake_on_connect=False, server_hostname=self.load.host
            )
            assert self.socket.fileno() == number
            self.load.poll.register(number, select.EPOLLOUT)
        if not self.shaken:
            self.socket.do_handshake()
            self.shaken = True
        if self.left:
            self.socket.send(self.left)  # far less than a socket takes
            self.left = b""
        while True:
            more = self.socket.recv(16384)
            self.got += more
            head, blank, body = self.got.partition(b"\r\n\r\n")
            if blank and len(body) >= _length(head):
                self.error = "" if head.startswith(b"HTTP/1.1 200 ") else head[:12].decode("ascii", "replace")
                return True
            if not more:
                self.error = "cut off"
                return True

    def end(self) -> None:
        """Hang up."""
        if self.socket is not None:
            del self.load.agents[self.socket.fileno()]
            self.load.poll.unregister(self.socket.fileno())
            self.socket.close()
            self.socket = None


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def main() -> None:
    """Print what came of it, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("ca", type=Path)
    parser.add_argument("keys", type=Path, help="a session key a line")
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--at-once", type=int, default=512)
    asked = parser.parse_args()
    tls = ssl.create_default_context(cafile=str(asked.ca))
    load = Load(asked.host, asked.port, tls, asked.keys.read_text().split(), asked.kept)
    cpu = time.process_time()
    seconds = load.run(asked.seconds, asked.at_once)
    cpu = time.process_time() - cpu
    took = sorted(load.took) or [0.0]
    at = {f"p{p}": took[min(len(took) - 1, len(took) * p // 100)] for p in (50, 99)}
    done = {"count": len(load.took), "seconds": seconds, "cpu": cpu, "failed": dict(+load.failed), **at}
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
