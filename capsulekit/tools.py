"""The versions of the programs and libraries that make stored bytes; they are noted in the lock."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import zstandard

from capsulekit.errors import CapsulekitError

if TYPE_CHECKING:
    from capsulekit.distro.base import Distro


def tool_versions(distro: Distro) -> dict[str, str]:
    """Name -> version of everything whose version can change the bytes of a capsule of this distribution."""
    return {**tools_of_all(), **distro.tools()}


@cache
def tools_of_all() -> dict[str, str]:
    """Name -> version of the programs and libraries that make bytes of every capsule, of any distribution."""
    from capsulekit import kernel
    from capsulekit.image import squashfs

    return {
        "squashfs-tools": _first_number(squashfs.version()),
        "kmod": _first_number(kernel.depmod_version()),
        "libzstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "cyclonedx-python-lib": version("cyclonedx-python-lib"),
    }


def _first_number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)*", text)
    if not found:
        raise CapsulekitError(f"no version in {text!r}")
    return found[0]


def check_tools(locked: dict[str, str], distro: Distro) -> None:
    """Refuse a lock whose bytes these tools cannot reproduce; raises CapsulekitError naming the first that differs."""
    here = tool_versions(distro)
    for name, wanted in sorted(locked.items()):
        if here.get(name) != wanted:
            raise CapsulekitError(
                f"the lock was made with {name} {wanted}, this machine has {here.get(name, 'none')}",
                hint=f"install {name} {wanted}, or make the lock again with capsulekit lock",
            )
