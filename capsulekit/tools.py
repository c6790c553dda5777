"""The versions of the programs and libraries that make stored bytes; they are noted in the lock."""

from __future__ import annotations

import re
from functools import cache

import zstandard

from capsulekit.errors import CapsulekitError


@cache
def tool_versions() -> dict[str, str]:
    """Name → version of everything whose version can change a capsule's bytes."""
    from capsulekit import kernel
    from capsulekit.apt import deb, mmdebstrap
    from capsulekit.image import squashfs

    return {
        "mmdebstrap": mmdebstrap.version(),
        "dpkg": deb.dpkg_version(),
        "squashfs-tools": _first_number(squashfs.version()),
        "kmod": _first_number(kernel.depmod_version()),
        "libzstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }


def _first_number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)*", text)
    if not found:
        raise CapsulekitError(f"no version in {text!r}")
    return found[0]


def check_tools(locked: dict[str, str]) -> None:
    """Refuse a lock whose bytes these tools cannot reproduce; raises CapsulekitError naming the first that differs."""
    here = tool_versions()
    for name, version in sorted(locked.items()):
        if here.get(name) != version:
            raise CapsulekitError(
                f"the lock was made with {name} {version}, this machine has {here.get(name, 'none')}",
                hint=f"install {name} {version}, or make the lock again with capsulekit lock",
            )
