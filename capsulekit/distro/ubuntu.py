"""Ubuntu: which suites there are, whose keys sign them; the work is apt's and mmdebstrap's."""

from __future__ import annotations

from pathlib import Path

from capsulekit.apt.distro import AptDistro
from capsulekit.cache import Cache
from capsulekit.errors import CapsulekitError

SUITES = {"22.04": "jammy", "24.04": "noble"}
ARCHES = ("amd64", "arm64")
# From Ubuntu's package ubuntu-keyring; Debian 12 does not have it.
KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")


def create(release: str, arch: str, cache: Cache, repos: Path | None) -> AptDistro:
    """Ubuntu ``release`` (such as 24.04); raises CapsulekitError for one we do not know."""
    if release not in SUITES:
        raise CapsulekitError(f"unknown Ubuntu release {release}", hint="known: " + ", ".join(SUITES))
    if arch not in ARCHES:
        raise CapsulekitError(f"unknown Ubuntu architecture {arch}", hint="known: " + ", ".join(ARCHES))
    return AptDistro("ubuntu", release, SUITES[release], arch, KEYRING, cache, repos)
