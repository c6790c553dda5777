"""What a distribution must be able to do. One file each beside this one; found by its name."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from capsulekit.cache import Cache
from capsulekit.errors import CapsulekitError
from capsulekit.lock.model import Lock, Package, Request

SITE_REPOS = Path("/etc/capsulekit/repos.d")


class Distro(ABC):
    """One release of one distribution on one architecture, with a cache to work in.

    ``repos`` is the folder with the author's own archives for it (see ``own_repos``), or None for the defaults.
    """

    # What stage 2 needs of this family, as package names (capsulekit.initrd takes its programs out of them).
    stage2_packages: tuple[str, ...]
    # What it needs beside them to bring up the network of a hybrid capsule.
    hybrid_packages: tuple[str, ...] = ()
    # The type and the namespace of its packages' purl, such as ("deb", "debian"); the type is also what the
    # normaliser's table calls the family.
    purl: tuple[str, str]
    # Modules whose code decides the bytes of an installed root; part of a step's identity.
    code: tuple[str, ...]

    def __init__(self, release: str, arch: str, cache: Cache, repos: Path | None) -> None:
        self.release, self.arch, self.cache, self.repos = release, arch, cache, repos

    @abstractmethod
    def tools(self) -> dict[str, str]:
        """Name -> version of this family's programs that make stored bytes (beside those all families use)."""

    @abstractmethod
    def resolve(self, request: Request, keep: Sequence[Package] = ()) -> Lock:
        """Choose every package; those of ``keep`` stay at their version wherever they are needed.

        Raises CapsulekitError (unknown package, conflict, archive out of reach) or TrustError (index not signed well).
        """

    @abstractmethod
    def fetch(self, lock: Lock, packages: Sequence[Package], offline: bool, done: Callable[[int], None]) -> None:
        """Bring the packages into the cache, verified; ``offline`` opens no socket and fails naming what lacks.

        ``done`` is told the bytes that have arrived so far, now and then, from any thread.
        """

    @abstractmethod
    def install(self, lock: Lock, base: str, stage: int, before: Path | None, work: Path, out: IO[bytes]) -> None:
        """Install one stage of the lock's rootfs set and stream the whole root to ``out`` as a tar, names sorted.

        ``before`` is the tar of the stage before (None for stage 0); ``work`` is an empty scratch folder.
        """

    @abstractmethod
    def finish(self, work: Path) -> None:
        """Lay down in ``work`` what the family adds to a finished root (see rootfs/customize.sh)."""

    @abstractmethod
    def unpack(self, package: Package, folder: Path) -> None:
        """Unpack one cached package's files into ``folder``; nothing of it is run."""

    @abstractmethod
    def is_kernel(self, package: Package) -> bool:
        """Whether a package brings the kernel's image or modules (others that a kernel depends on are left out)."""

    def choose_components(self, components: Sequence[str]) -> None:
        """Take packages from these components of the archive; raises CapsulekitError where it has none."""
        del components
        raise CapsulekitError("the archive of this distribution has no components", hint="leave them out of [distro]")

    def licences(self, packages: Sequence[Package]) -> Mapping[str, str]:
        """Package name -> licence, where the package files say it (RPM does; for Debian the root's doc folder does)."""
        del packages
        return {}


def own_repos(name: str, release: str) -> Path | None:
    """The author's own archives for a release: NAME-RELEASE/ below CAPSULEKIT_REPOS_DIR or /etc/capsulekit/repos.d.

    For apt it holds sources.list and the keyrings (*.gpg, *.asc) that sign them; for dnf *.repo files and keys.
    """
    folder = Path(os.environ.get("CAPSULEKIT_REPOS_DIR") or SITE_REPOS) / f"{name}-{release}"
    return folder if folder.is_dir() else None


def distro(name: str, release: str, arch: str, cache: Cache, components: Sequence[str] = ()) -> Distro:
    """The distribution with that name, with these components of its archive (none: its default).

    Raises CapsulekitError when there is none of the name, or it has no components.
    """
    module = f"capsulekit.distro.{name}"
    if not name.isidentifier() or name == "base" or find_spec(module) is None:
        known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "base"))
        raise CapsulekitError(f"unknown distribution {name}", hint="known: " + ", ".join(known))
    made = import_module(module).create(release, arch, cache, own_repos(name, release))
    assert isinstance(made, Distro)
    if components:
        made.choose_components(components)
    return made
