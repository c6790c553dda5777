"""A server of blobs that does to its clients whatever it is told: a mirror gone bad, a master that dies half way.

python blob_server.py ADDRESS PORT FOLDER: the blobs are FOLDER/SHA256, the behaviour is in FOLDER/mode (see Manner),
and every request is a line in FOLDER/log: PATH RANGE STATUS BYTES.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HANG = 60.0  # seconds


class Manner:
    """How it behaves: one of these words.

    good · garbage (right length, wrong bytes) · missing (404) · error (503) · redirect (to elsewhere) ·
    noranges (sends the whole) · cut N (closes after N bytes of an answer) · endless ·
    hang N (silent after N bytes, until the mode changes) ·
    lying (says it sends the part that was asked for, and sends the beginning)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hanging = threading.Event()
        self._lock = threading.Lock()

    @property
    def words(self) -> list[str]:
        path = self.folder / "mode"
        return (path.read_text() if path.exists() else "good").split()

    def note(self, line: str) -> None:
        with self._lock, (self.folder / "log").open("a") as log:
            log.write(line + "\n")


class Handler(BaseHTTPRequestHandler):
    """GET /…/SHA256."""

    protocol_version = "HTTP/1.1"
    manner: Manner

    def do_GET(self) -> None:
        mode, *numbers = self.manner.words
        blob = self.manner.folder / self.path.rpartition("/")[2]
        wanted = self.headers.get("Range", "-")
        if mode == "redirect" and blob.name == "elsewhere":
            mode = "good"
        if mode in ("missing", "error", "redirect") or not blob.is_file():
            status = {"error": 503, "redirect": 302}.get(mode, 404)
            self.answer(status, b"sorry\n" * 3, wanted)
            return
        data = blob.read_bytes()
        if mode == "garbage":
            data = bytes(byte ^ 0x55 for byte in data)
        start = int(wanted[6:].partition("-")[0]) if wanted.startswith("bytes=") and mode != "noranges" else 0
        part = data[: len(data) - start] if mode == "lying" else data[start:]
        if mode in ("cut", "hang"):
            self.answer(206 if start else 200, part, wanted, int(numbers[0]), hang=mode == "hang")
        elif mode == "endless":
            self.endless(wanted)
        else:
            self.answer(206 if start else 200, part, wanted)

    def answer(self, status: int, body: bytes, wanted: str, most: int | None = None, *, hang: bool = False) -> None:
        self.manner.note(f"{self.path} {wanted} {status} {len(body) if most is None else min(most, len(body))}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body if most is None else body[:most])
        self.wfile.flush()
        if most is not None and most < len(body):
            if hang:
                end, words = time.monotonic() + HANG, self.manner.words
                while self.manner.words == words and time.monotonic() < end and not self.manner.hanging.wait(0.1):
                    pass
            self.close_connection = True

    def endless(self, wanted: str) -> None:
        self.manner.note(f"{self.path} {wanted} 200 endless")
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.manner.hanging.is_set():
                self.wfile.write(b"x" * 65536)
        self.close_connection = True

    def log_message(self, *_words: object) -> None:
        """Its own log says it all."""


def make(address: str, port: int, manner: Manner) -> ThreadingHTTPServer:
    """The server, not running yet."""
    handler = type("BlobHandler", (Handler,), {"manner": manner})
    family = {"address_family": socket.AF_INET6 if ":" in address else socket.AF_INET}
    server: ThreadingHTTPServer = type("BlobServer", (ThreadingHTTPServer,), family)((address, port), handler)
    server.daemon_threads = True
    return server


class Blobs:
    """One such server on loopback; ``url`` is its base."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        folder.mkdir()
        self.folder = folder
        self.manner = Manner(folder)
        self._server = make(address, 0, self.manner)
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def mode(self, text: str) -> None:
        """How it behaves from now on."""
        (self.folder / "mode").write_text(text)

    @property
    def log(self) -> list[list[str]]:
        """[PATH, RANGE, STATUS, BYTES] of every request so far."""
        path = self.folder / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        self.manner.hanging.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def blob_servers(folder: Path, count: int) -> Iterator[list[Blobs]]:
    """Several of them."""
    servers = [Blobs(folder / f"server{number}") for number in range(count)]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


if __name__ == "__main__":
    make(sys.argv[1], int(sys.argv[2]), Manner(Path(sys.argv[3]))).serve_forever()
