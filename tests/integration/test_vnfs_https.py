"""Importing from a web server: https only, its certificate checked, bounded, taken up again where the line broke."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from asking_capsule import NAME, kit, stored, trusting_site
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from small_capsule import CONTENT, small_capsule

from capsulekit.sitepaths import SitePaths

BIG = {**CONTENT, "layers/hybrid.squashfs": bytes(3_000_000)}


@dataclass
class Server:
    """What it serves and how: ``cut`` bytes at most an answer, ``tag`` its ETag, ``to`` a redirect, ``chunked``."""

    data: bytes
    url: str = ""
    cut: int = 0
    tag: str = '"one"'
    to: str = ""
    told: bool = True
    asked: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its server's ``how`` says."""

    how: Server

    def do_GET(self) -> None:
        how = self.how
        how.asked.append(self.headers.get("Range", ""))
        if how.to or self.path == "/gone.vnfs":
            self.send_response(302 if how.to else 404)
            self.send_header("Location", how.to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == how.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        rest = how.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(how.data) - 1}/{len(how.data)}")
        if how.told:
            self.send_header("Content-Length", str(len(rest)))
        if how.tag:
            self.send_header("ETag", how.tag)
        self.end_headers()
        self.wfile.write(rest[: how.cut] if how.cut else rest)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


def certificate(folder: Path, host: str) -> Path:
    """A certificate for ``host``, which is its own authority, and its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / f"{host}.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return trusting_site(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on 127.0.0.1 that this process trusts."""
    small_capsule(tmp_path / "t.vnfs", BIG)
    pem = certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Server((tmp_path / "t.vnfs").read_bytes()), pem) as running:
        yield running


class serving:
    """The server, running for the time of a block."""

    def __init__(self, how: Server, pem: Path) -> None:
        self._how = how
        handler = type("Bound", (Handler,), {"how": how})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        how.url = f"https://127.0.0.1:{self._server.server_port}/t.vnfs"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Server:
        self._thread.start()
        return self._how

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def nothing_left(paths: SitePaths) -> bool:
    work = paths.state / "work" / "tmp"
    left = [p for p in work.rglob("*") if p.name != ".lock"] if work.exists() else []
    return stored(paths) == [] and left == []


def test_a_capsule_comes_over_https(paths: SitePaths, server: Server) -> None:
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 0 and done.out.startswith(f"{NAME} imported ("), done.err
    assert [p for p in (paths.state / "work" / "tmp").iterdir() if p.name != ".lock"] == []


@pytest.mark.parametrize("name", ["%00.vnfs", "..", "x" * 300, "%2e%2e%2f%2e%2e", "a%0ab", ""])
def test_an_address_may_end_in_what_is_no_name_of_a_file(paths: SitePaths, server: Server, name: str) -> None:
    done = kit(paths, "vnfs", "import", server.url.replace("/t.vnfs", f"/{name}"))
    assert (done.status, done.out.split(" (")[0]) == (0, "tiny-1.0.amd64 imported")


def test_a_broken_line_is_taken_up_where_it_broke(paths: SitePaths, server: Server) -> None:
    server.cut = 1_300_000
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 0, done.err
    assert server.asked == ["", "bytes=1300000-", "bytes=2600000-"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_mark_it_starts_again_and_gives_up_in_the_end(
    paths: SitePaths, server: Server, tag: str
) -> None:
    server.cut, server.tag = 1_300_000, tag
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 1 and "ended after 1300000 of" in done.err
    assert server.asked == [""] * 5
    assert nothing_left(paths)


def test_a_file_that_changes_between_two_parts_is_read_from_its_beginning(paths: SitePaths, server: Server) -> None:
    server.cut = 1_300_000

    class Asked(list[str]):
        def append(self, text: str) -> None:
            super().append(text)
            if len(self) == 2:
                server.tag, server.cut = '"two"', 0

    server.asked = Asked()
    done = kit(paths, "vnfs", "import", server.url)
    assert (done.status, len(server.asked)) == (0, 2), done.err


def test_an_answer_of_unknown_length_is_taken_as_it_ends(paths: SitePaths, server: Server) -> None:
    server.told = False
    assert kit(paths, "vnfs", "import", server.url).status == 0


def test_too_much_is_refused_whether_it_is_told_or_not(paths: SitePaths, server: Server) -> None:
    for told in (True, False):
        server.told = told
        done = kit(paths, "vnfs", "import", server.url, "--max-size", "1")
        assert done.status == 1 and "--max-size" in done.err
        assert nothing_left(paths)


def test_an_unknown_certificate_is_refused(paths: SitePaths, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 3 and "certificate does not hold" in done.err and server.asked == []
    assert nothing_left(paths)


def test_a_certificate_of_another_host_is_refused(
    paths: SitePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path, "10.9.8.7")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with serving(Server(b""), pem) as server:
        done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 3 and "certificate does not hold" in done.err


@pytest.mark.parametrize(
    "to", ["http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "https://u:p@127.0.0.1/"]
)
def test_a_redirect_leads_to_https_and_to_nothing_else(paths: SitePaths, server: Server, to: str) -> None:
    server.to = to
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 1 and ("leads to" in done.err or "the server says 302" in done.err)
    assert nothing_left(paths)


def test_redirects_without_end_are_an_error(paths: SitePaths, server: Server) -> None:
    server.to = server.url
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 1 and done.err.count("\n") == 1 and "this is a bug" not in done.err


def test_what_the_server_does_not_have_is_one_line(paths: SitePaths, server: Server) -> None:
    done = kit(paths, "vnfs", "import", server.url.replace("/t.vnfs", "/gone.vnfs"))
    assert done.status == 1 and "the server says 404" in done.err
    done = kit(paths, "vnfs", "import", "https://127.0.0.1:1/t.vnfs")
    assert done.status == 1 and "Connection refused" in done.err
    assert nothing_left(paths)


def test_a_capsule_that_nobody_trusts_is_refused_and_the_copy_is_gone(paths: SitePaths, server: Server) -> None:
    server.data = server.data.replace(b"kernelkernel", b"kernalkernel", 1)
    done = kit(paths, "vnfs", "import", server.url)
    assert done.status == 3 and "wrong digest" in done.err
    assert nothing_left(paths)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://host.example/x.vnfs", "over https only"),
        ("ftp://host.example/x.vnfs", "over https only"),
        ("file:///etc/passwd", "over https only"),
        ("https://", "is not an address"),
        ("https://host.example:99999/x", "is not an address"),
        ("https://host.example:0/x", "is not an address"),
        ("https://user:secret@host.example/x", "must not hold a name or password"),
        ("https://host.example/a b", "is not an address"),
        ("https://[::1/x", "is not an address"),
    ],
)
def test_a_wrong_address_is_wrong_usage(paths: SitePaths, address: str, told: str) -> None:
    done = kit(paths, "vnfs", "import", address)
    assert done.status == 2 and told in done.err and "secret" not in done.err.replace("--secret", "")
    assert nothing_left(paths)


@pytest.mark.parametrize("words", [("--max-size", "0"), ("--max-size", "x"), ("--as",), ("--answers", "/no/such"), ()])
def test_wrong_flags_are_wrong_usage(paths: SitePaths, tmp_path: Path, words: tuple[str, ...]) -> None:
    small_capsule(tmp_path / "t.vnfs")
    done = kit(paths, "vnfs", "import", *([tmp_path / "t.vnfs"] if words else []), *words)
    assert done.status == 2 and stored(paths) == []
