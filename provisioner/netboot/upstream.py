"""The name servers that are asked for names which are not the site's own."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path

from capsulekit.errors import CapsulekitError

# resolved(8) leaves 127.0.0.53 in /etc/resolv.conf, and the real servers here.
BEHIND_RESOLVED = Path("/run/systemd/resolve/resolv.conf")


def upstream_file(setting: str) -> Path | None:
    """The resolv.conf that ``dns_upstream`` names, or None when it names addresses, or nobody."""
    return Path(setting) if setting.startswith("/") else None


def upstream_servers(setting: str, own: Collection[str], behind: Path = BEHIND_RESOLVED) -> tuple[str, ...]:
    """Their addresses in order, without loopback's and without our ``own``, which would ask us again, and again.

    Raises CapsulekitError for a word in the setting that is no address; in a resolv.conf such lines are left out.
    """
    path = upstream_file(setting)
    if path is None:
        return _usable([_checked(word) for word in setting.split()], own)
    found = _servers(path)
    usable = _usable(found, own)
    return usable if usable or "127.0.0.53" not in found else _usable(_servers(behind), own)


def _servers(path: Path) -> list[str]:
    """The addresses in a resolv.conf (resolv.conf(5)); none when it is not there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CapsulekitError(f"{path}: {error.strerror}", hint="it is dns_upstream in site.toml") from error
    words = [line.split() for line in lines]
    return [one for one in (w[1] for w in words if len(w) > 1 and w[0] == "nameserver") if _is_address(one)]


def _usable(found: list[str], own: Collection[str]) -> tuple[str, ...]:
    plain = [str(ip_address(one)) for one in found if not ip_address(one).is_loopback]
    return tuple(dict.fromkeys(one for one in plain if one not in own))


def _checked(word: str) -> str:
    if not _is_address(word):
        raise CapsulekitError(
            f"site.toml: dns_upstream names {word!r}, which is no IP address",
            hint='addresses separated by spaces, or a file like "/etc/resolv.conf", or "" for none',
        )
    return word


def _is_address(text: str) -> bool:
    try:
        return "%" not in str(ip_address(text))
    except ValueError:
        return False
