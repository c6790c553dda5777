"""Capsules from a web server: https only, also after a redirect; bounded, and taken up again where a line broke.

What comes is not believed: the capsule's own signature is checked like that of any file.
"""

from __future__ import annotations

import re
import shutil
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import client as http_client
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from capsulekit.cache import Cache
from capsulekit.errors import CapsulekitError, TrustError, UsageError
from capsulekit.sitepaths import SitePaths

CHUNK = 1 << 20
SILENCE = 60.0  # seconds without a byte
ATTEMPTS = 5
# Called with the bytes that are here and those there will be (0: not told).
Progress = Callable[[int, int], None]


def is_address(text: str) -> bool:
    """Whether this is an address and not a file. Raises UsageError for one that is not https."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return False
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as wrong:
        raise UsageError(f"{text[:200]!r} is not an address: {wrong}") from wrong
    if parts.scheme.lower() != "https":
        raise UsageError(
            f"capsules are fetched over https only, not {parts.scheme}", hint="download it, then import FILE"
        )
    if not host or port == 0 or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{text[:200]!r} is not an address", hint="https://HOST/PATH.vnfs")
    if parts.username is not None or parts.password is not None:
        raise UsageError("an address must not hold a name or password: everybody sees the command line")
    return True


@contextmanager
def local_copy(paths: SitePaths, address: str, limit: int, progress: Progress | None = None) -> Iterator[Path]:
    """Fetch ``address`` into the state folder; the file is gone at the end of the block, also of a killed one (later).

    At most ``limit`` bytes. Raises TrustError when the server can't prove who it is, CapsulekitError for anything else
    that goes wrong.
    """
    with Cache(paths.state / "work").scratch("download") as work:
        path = work / _file_name(address)
        try:
            with path.open("wb") as out:
                _fetch(address, out, limit, progress)
        except OSError as wrong:
            raise CapsulekitError(f"can't store {address}: {wrong.strerror or wrong}") from wrong
        yield path


def _file_name(address: str) -> str:
    """What the address calls the file, as a plain name; a capsule of Perceus is named by it."""
    last = unquote(urlsplit(address).path).rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", last)[-200:].lstrip(".") or "capsule.vnfs"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to https, and to nothing else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request. Raises CapsulekitError for an address that is not https."""
        try:
            is_address(newurl)
        except UsageError as wrong:
            raise CapsulekitError(f"{req.full_url} leads to {newurl[:200]!r}: {wrong.message}") from wrong
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _fetch(address: str, out: IO[bytes], limit: int, progress: Progress | None) -> None:
    """All of it; where the line breaks it goes on from there, as long as attempts bring something new."""
    opener, validator, best, tries = _opener(), "", 0, 0
    while True:
        try:
            with _ask(opener, address, out.tell(), validator) as answer:
                total = _begin(answer, out, address, limit)
                validator = _validator(answer)
                _copy(answer, out, address, limit, total, progress)
            if not total or out.tell() == total:
                return
            reason = f"it ended after {out.tell()} of {total} bytes"
        except (http_client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as wrong:
            reason = f"the line broke: {wrong or type(wrong).__name__}"
        if validator and out.tell() > best:
            best, tries = out.tell(), 0
        tries += 1
        if tries >= ATTEMPTS:
            raise CapsulekitError(f"can't fetch {address}: {reason}")
        if not validator:
            out.seek(0)


def _validator(answer: Any) -> str:
    """What tells whether it is still the same file; a weak one does not: two may have it (RFC 9110, 13.1.5)."""
    tag: str = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return "" if tag.startswith("W/") else tag


def _ask(opener: urllib.request.OpenerDirector, address: str, start: int, validator: str) -> Any:
    headers = {"User-Agent": "capsulekit", "Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        return opener.open(urllib.request.Request(address, headers=headers), timeout=SILENCE)  # noqa: S310 - https only
    except HTTPError as wrong:
        wrong.close()
        raise CapsulekitError(f"can't fetch {address}: the server says {wrong.code} {wrong.reason}") from wrong
    except URLError as wrong:
        if isinstance(wrong.reason, ssl.SSLCertVerificationError):
            raise TrustError(
                f"can't fetch {address}: the server's certificate does not hold: {wrong.reason.verify_message}",
                hint="a server of your own needs a certificate that this system trusts",
            ) from wrong
        told = getattr(wrong.reason, "strerror", None) or wrong.reason
        raise CapsulekitError(f"can't fetch {address}: {told}") from wrong


def _begin(answer: Any, out: IO[bytes], address: str, limit: int) -> int:
    """Stand where the answer's bytes go; returns the size of the whole file in bytes, 0 when it is not told."""
    length = answer.headers.get("Content-Length", "")
    length = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0
    if answer.status == 206:
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != out.tell():
            raise CapsulekitError(f"can't fetch {address}: the server sent another part than was asked for")
        total = int(found[2])
    else:
        out.seek(0)
        out.truncate()
        total = length
    if total > limit:
        raise CapsulekitError(
            f"can't fetch {address}: it has {total / 1e6:.0f} MB, more than {limit / 1e6:.0f}",
            hint="allow more: --max-size MB",
        )
    free = shutil.disk_usage(Path(out.name).parent).free
    if total - out.tell() > free:
        raise CapsulekitError(f"can't fetch {address}: {total / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free here")
    return total


def _copy(answer: Any, out: IO[bytes], address: str, limit: int, total: int, progress: Progress | None) -> None:
    while chunk := answer.read(CHUNK):
        if out.tell() + len(chunk) > limit:
            raise CapsulekitError(
                f"can't fetch {address}: it goes on after {limit / 1e6:.0f} MB", hint="allow more: --max-size MB"
            )
        out.write(chunk)
        if progress is not None:
            progress(out.tell(), total)
