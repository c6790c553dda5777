"""Debian: which suites there are, whose keys sign them; the work is apt's and mmdebstrap's."""

from __future__ import annotations

from pathlib import Path

from capsulekit.apt.distro import AptDistro
from capsulekit.cache import Cache
from capsulekit.errors import CapsulekitError

SUITES = {"12": "bookworm", "13": "trixie"}
ARCHES = ("amd64", "i386", "arm64")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def create(release: str, arch: str, cache: Cache, repos: Path | None) -> AptDistro:
    """Debian ``release`` (a number); raises CapsulekitError for one we do not know."""
    if release not in SUITES:
        raise CapsulekitError(f"unknown Debian release {release}", hint="known: " + ", ".join(SUITES))
    if arch not in ARCHES:
        raise CapsulekitError(f"unknown Debian architecture {arch}", hint="known: " + ", ".join(ARCHES))
    return AptDistro("debian", release, SUITES[release], arch, KEYRING, cache, repos)
