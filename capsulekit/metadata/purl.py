"""Package URLs of locked packages (purl-spec, types deb and rpm)."""

from __future__ import annotations

from capsulekit.lock.model import Lock, Package


def purl(package: Package, lock: Lock, kind: tuple[str, str]) -> str:
    """The package's URL; ``kind`` is a Distro's (type, namespace), such as ("deb", "debian").

    An RPM's epoch is a qualifier, not a part of the version, as its type says.
    """
    from packageurl import PackageURL

    version, qualifiers = package.version, {"arch": package.arch, "distro": f"{lock.distro}-{lock.release}"}
    if kind[0] == "rpm" and ":" in version:
        qualifiers["epoch"], _, version = version.partition(":")
    return PackageURL(kind[0], kind[1], package.name, version, qualifiers).to_string()
