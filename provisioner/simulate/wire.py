"""HTTP as a pretend node speaks it: from an address of its own, one request after the other, nothing believed.

A node asks with a new curl each time, so a connection holds one request unless said otherwise.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from provisioner.simulate.tally import Tally

MOST_BODY = 16 << 20  # bytes of an answer that is kept, as the agent allows its curl
PIECE = 1 << 18
LONGEST_REASON = 100


class Failed(Exception):
    """What ended a pretend node; the text is the reason, the same for all that failed alike."""


class Unreachable(Failed):
    """No connection came about, or it was cut."""


@dataclass(frozen=True)
class Address:
    """A server's half: plain when ``tls`` is None."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @property
    def netloc(self) -> str:
        """HOST:PORT as URLs spell it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; ``body`` is empty where it was handed on piece by piece."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""

    @property
    def line(self) -> str:
        """The first line of its text, short and printable."""
        text = self.body[:400].decode("utf-8", "replace").partition("\n")[0]
        return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_REASON]


@dataclass
class Wire:
    """One pretend node's way to one half of the master. ``source`` is the address it comes from, "" the machine's."""

    to: Address
    source: str
    tally: Tally
    keep: bool = False  # one connection for all requests
    key: str = ""  # session key
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, repr=False)

    async def get(self, kind: str, path: str, sink: Callable[[bytes], object] | None = None) -> Answer:
        """GET; ``kind`` is what the figures call it. A ``sink`` is given the body of a good answer in pieces."""
        return await self._timed(kind, "GET", path, b"", "", 300.0 if sink else 30.0, sink)

    async def post(self, kind: str, path: str, form: Mapping[str, str] | bytes, seconds: float = 30.0) -> Answer:
        """POST a form, or plain text. Raises Failed after ``seconds``."""
        if isinstance(form, bytes):
            return await self._timed(kind, "POST", path, form, "text/plain", seconds)
        return await self._timed(
            kind, "POST", path, urlencode(form).encode(), "application/x-www-form-urlencoded", seconds
        )

    def close(self) -> None:
        """Hang up."""
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None

    async def _timed(
        self, kind: str, method: str, path: str, body: bytes, content_type: str, seconds: float,
        sink: Callable[[bytes], object] | None = None,
    ) -> Answer:  # fmt: skip
        start = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                answer = await self._ask(method, path, body, content_type, sink)
        except TimeoutError:
            self.close()
            raise Failed(f"{kind}: no answer within {seconds:g} s") from None
        except ssl.SSLError as error:
            self.close()
            raise Failed(f"{kind}: TLS: {error.reason or error}") from error
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            self.close()
            # asyncio's own text has addresses in it, which are no reason.
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "the connection was cut"
            raise Unreachable(f"{kind}: {why.lower()}") from error
        self.tally.request(kind, time.monotonic() - start)
        return answer

    async def _ask(
        self, method: str, path: str, body: bytes, content_type: str, sink: Callable[[bytes], object] | None
    ) -> Answer:
        if self._streams is None:
            self._streams = await self._connect()
        reader, writer = self._streams
        head = [f"{method} {path} HTTP/1.1", f"Host: {self.to.netloc}", "User-Agent: capsulekit-simulate"]
        head += [f"Content-Length: {len(body)}", f"Content-Type: {content_type}"] if method == "POST" else []
        head += [f"Authorization: Bearer {self.key}"] if self.key else []
        head += [] if self.keep else ["Connection: close"]
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + body)
        answer = await self._answer(reader, sink)
        if not self.keep or answer.headers.get("connection", "") == "close":
            self.close()
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        local = (self.source, 0) if self.source else None
        # Without TLS the two others have to be None.
        name, wait = (self.to.host, 30.0) if self.to.tls else (None, None)
        return await asyncio.open_connection(
            self.to.host, self.to.port, local_addr=local, ssl=self.to.tls, server_hostname=name,
            ssl_handshake_timeout=wait,
        )  # fmt: skip

    async def _answer(self, reader: asyncio.StreamReader, sink: Callable[[bytes], object] | None) -> Answer:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ValueError("not HTTP")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        status, left = int(rest[:3]), int(headers.get("content-length", "0"))
        if sink is None or status != 200:
            if left > MOST_BODY:
                raise ValueError("too long")
            body = await reader.readexactly(left)
            self.tally.bytes += len(body)
            return Answer(status, headers, body)
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise EOFError
            sink(piece)
            left -= len(piece)
            self.tally.bytes += len(piece)
        return Answer(status, headers)
