"""Fedora: which releases there are, and where they keep rpm's database; the work is dnf's."""

from __future__ import annotations

from pathlib import Path

from capsulekit.cache import Cache
from capsulekit.rpm.distro import RpmDistro, RpmRelease

# Since 42, /usr/sbin is a link too.
MERGED_SBIN = "bin=usr/bin usr/sbin=bin sbin=usr/sbin lib=usr/lib lib64=usr/lib64"
RELEASES = {
    "42": RpmRelease("/usr/lib/sysimage/rpm", "platform:f42", "fedora-release", MERGED_SBIN),
    "43": RpmRelease("/usr/lib/sysimage/rpm", "platform:f43", "fedora-release", MERGED_SBIN),
}


def create(release: str, arch: str, cache: Cache, repos: Path | None) -> RpmDistro:
    """Fedora ``release`` (a number); raises CapsulekitError for one we do not know."""
    return RpmDistro("fedora", "fedora", "Fedora", RELEASES, release, arch, cache, repos)
