"""A web server before the master: public blobs from its cache, everything else from nowhere.

A mirror as stage 1 asks for it: ``blobs/SHA256``, signed sums, boot files. It passes requests on to the half of
``serve`` that serves what anybody may have, so it can never give away more than that, and keeps what does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError, UsageError
from provisioner.netboot.templates import render
from provisioner.siteconf import SiteConfig
from provisioner.sitefiles import Change, whole

PORT = 8080


@dataclass(frozen=True)
class Server:
    """A web server that can be configured.

    ``places``: the folder that a distribution's server includes files from → one for its cache that it can make or has.
    """

    name: str
    places: Mapping[Path, Path]
    unit: str
    after: str  # what makes it hold


SERVERS = {
    "nginx": Server(
        "nginx",
        {Path("/etc/nginx/conf.d"): Path("/var/lib/nginx/capsulekit")},
        "nginx",
        "To make it hold: nginx -t && systemctl reload nginx",
    ),
    "apache": Server(
        "apache",
        {
            Path("/etc/apache2/conf-available"): Path("/var/cache/apache2/mod_cache_disk"),
            Path("/etc/httpd/conf.d"): Path("/var/cache/httpd/capsulekit"),
        },
        "apache2",
        "To make it hold: a2enmod proxy_http cache_disk && a2enconf capsulekit && systemctl reload apache2",
    ),
}


def installed(there: Callable[[Path], bool] = Path.is_dir) -> Server:
    """The web server of this machine. Raises CapsulekitError when there is none, or both are."""
    found = [server for server in SERVERS.values() if any(there(place) for place in server.places)]
    if len(found) == 1:
        return found[0]
    what = "no web server is installed here" if not found else "both nginx and Apache are installed here"
    raise CapsulekitError(what, hint="say which: capsulekit configure nginx, or: capsulekit configure apache")


def changes(site: SiteConfig, server: Server, port: int = PORT, target: Path | None = None) -> list[Change | None]:
    """The file that is ours alone in the server's folder. Raises CapsulekitError when there is no such folder."""
    if port in (site.http_port, site.tls_port):
        raise UsageError(f"port {port} is that of capsulekit serve itself", hint="choose another: --port N")
    folder = next((place for place in server.places if place.is_dir()), None)
    if target is None and folder is None:
        places = " nor ".join(map(str, server.places))
        raise CapsulekitError(f"{server.name} is not installed: there is no {places}", hint="or name a file: --file")
    folder = folder or next(iter(server.places))
    address = f"{site.host}:{port}"
    cache = str(server.places[folder])
    text = render(f"{server.name}.conf.j2", address=address, master=site.plain_url, cache=cache)
    return [whole(target or folder / "capsulekit.conf", text)]


def mirror_hint(site: SiteConfig, port: int) -> str:
    """What the admin adds to site.toml for the nodes to ask it."""
    return f'The nodes ask it once site.toml has: mirrors = "http://{site.host}:{port}"'
