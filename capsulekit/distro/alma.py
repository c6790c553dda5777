"""AlmaLinux: which releases there are, and where they keep rpm's database; the work is dnf's."""

from __future__ import annotations

from pathlib import Path

from capsulekit.cache import Cache
from capsulekit.rpm.distro import RpmDistro, RpmRelease

RELEASES = {
    "9": RpmRelease("/var/lib/rpm", "platform:el9", "almalinux-release"),
    "10": RpmRelease("/usr/lib/sysimage/rpm", "platform:el10", "almalinux-release"),
}


def create(release: str, arch: str, cache: Cache, repos: Path | None) -> RpmDistro:
    """AlmaLinux ``release`` (a major number); raises CapsulekitError for one we do not know."""
    return RpmDistro("alma", "almalinux", "AlmaLinux", RELEASES, release, arch, cache, repos)
