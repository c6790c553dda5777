"""The web servers' files, by the real nginx and Apache: a mirror of what anybody may have, and nothing else."""

from __future__ import annotations

import http.server
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from small_site import free_port

from provisioner.services.web import SERVERS, changes
from provisioner.siteconf import SiteConfig

BLOB, SUMS = "/blobs/" + "ab" * 32, "/capsules/" + "cd" * 32 + "/SHA256SUMS"
APACHE = (
    "mpm_event", "authz_core", "proxy", "proxy_http", "cache", "cache_disk",
)  # fmt: skip


class Master(http.server.BaseHTTPRequestHandler):
    """Answers as `serve` does, and counts what it is asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.path.encode() * 100
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.path.startswith("/blobs/"):
            self.send_header("Cache-Control", "public, max-age=31536000, immutable")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def web_server(name: str, folder: Path, cache: Path, site: SiteConfig, port: int) -> Iterator[None]:
    """nginx or Apache with our file and the least of a main file."""
    cache.chmod(0o777)
    target, main = folder / "capsulekit.conf", folder / "main.conf"
    change = changes(site, replace(SERVERS[name], places={folder: cache}), port, target)[0]
    assert change is not None
    target.write_bytes(change.new)
    if name == "nginx":
        main.write_text(
            f"user root;\npid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nevents {{}}\n"
            f"http {{ access_log off; include {target}; }}\n"
        )
        argv = ["nginx", "-c", str(main), "-e", f"{folder}/error.log"]
    else:
        modules = "".join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so\n" for m in APACHE)
        main.write_text(
            f"{modules}ServerName x.invalid\nServerRoot {folder}\nPidFile {folder}/pid\nDefaultRuntimeDir {folder}\n"
            f"ErrorLog {folder}/error.log\nUser www-data\nGroup www-data\nInclude {target}\n"
        )
        argv = ["apache2", "-X", "-f", str(main)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        try:
            end = time.monotonic() + 20
            while not _answers(port):
                assert process.poll() is None and time.monotonic() < end, (
                    process.stderr and process.stderr.read(),
                    _log(folder),
                )
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def _log(folder: Path) -> str:
    log = folder / "error.log"
    return log.read_text() if log.exists() else ""


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_a_web_server_sends_public_files_from_its_cache_and_nothing_else(name: str, tmp_path: Path) -> None:
    asked: list[str] = []
    handler = type("Counting", (Master,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as master:
        threading.Thread(target=master.serve_forever, daemon=True).start()
        site = SiteConfig(address="127.0.0.1/8", http_port=master.server_address[1])
        port = free_port()
        # Apache gives up root: its cache must not lie below pytest's own folder, which is root's alone.
        with tempfile.TemporaryDirectory() as cache, web_server(name, tmp_path, Path(cache), site, port):
            # Apache keeps a file once it has been sent whole: the first two may both be passed on.
            for _ in range(10):
                assert ask(port, BLOB) == (200, BLOB.encode() * 100), _log(tmp_path)
            assert len(asked) < 5, "a blob comes from the cache"
            assert ask(port, SUMS)[0] == ask(port, SUMS + ".minisig")[0] == 200
            del asked[:]
            private = ["/", "/v1/boot.ipxe?mac=52:54:00:00:00:01", "/v1/blobs/" + "ab" * 32, "/metrics", BLOB + "/.."]
            private += ["/blobs/../v1/plan", "/blobs/%2e%2e/v1/plan", "/blobs/" + "AB" * 32, SUMS + "x", "/capsules/x"]
            assert {path: ask(port, path)[0] for path in private if ask(port, path)[0] < 400} == {}
            assert ask(port, BLOB, "POST")[0] >= 400
            assert asked == [], "the master was asked for what is not public"
        master.shutdown()
