"""What a distribution must be able to do. One file each beside this one; found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from capsulekit.cache import Cache
from capsulekit.errors import CapsulekitError
from capsulekit.lock.model import Lock, Package


class Distro(ABC):
    """One release of one distribution on one architecture, with a cache to work in."""

    def __init__(self, release: str, arch: str, cache: Cache) -> None:
        self.release, self.arch, self.cache = release, arch, cache

    @abstractmethod
    def resolve(self, wanted: Mapping[str, Sequence[str]], base: str) -> Lock:
        """Choose every package: ``wanted`` maps the lock's set names to package names. Raises CapsulekitError."""

    @abstractmethod
    def fetch(self, packages: Sequence[Package], offline: bool) -> None:
        """Bring the packages into the cache, verified; ``offline`` opens no socket and fails naming what lacks."""

    @abstractmethod
    def bootstrap(self, lock: Lock, base: str, customize: Path, out: IO[bytes]) -> None:
        """Install the lock's rootfs set into a new root, let ``customize`` change it, stream it to ``out`` as a tar."""

    @abstractmethod
    def unpack(self, package: Package, folder: Path) -> None:
        """Unpack one cached package's files into ``folder``; nothing of it is run."""


def distro(name: str, release: str, arch: str, cache: Cache) -> Distro:
    """The distribution with that name; raises CapsulekitError when there is none."""
    module = f"capsulekit.distro.{name}"
    if not name.isidentifier() or name == "base" or find_spec(module) is None:
        known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "base"))
        raise CapsulekitError(f"unknown distribution {name}", hint="known: " + ", ".join(known))
    made = import_module(module).create(release, arch, cache)
    assert isinstance(made, Distro)
    return made
