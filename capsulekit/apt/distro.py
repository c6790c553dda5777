"""Distributions that install with apt: solve and download with apt, install with mmdebstrap."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from capsulekit.apt import deb, mmdebstrap
from capsulekit.apt.solver import AptRoot
from capsulekit.cache import Cache, code_identity
from capsulekit.distro.base import Distro
from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import atomic_write, exclusive_lock, sha256_bytes
from capsulekit.lock.model import MAX_EPOCH, Lock, Package, loads
from capsulekit.tools import tool_versions

KERNELS = ("linux-image-", "linux-modules-")


def _epoch(newest: int) -> int:
    """The build's time: SOURCE_DATE_EPOCH where it is set, else the archive's own date."""
    said = os.environ.get("SOURCE_DATE_EPOCH") or str(newest)
    if not said.isdecimal() or int(said) > MAX_EPOCH:
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, not {said!r}")
    return int(said)


class AptDistro(Distro):
    """One suite of an apt distribution."""

    def __init__(self, name: str, release: str, suite: str, arch: str, keyring: Path, cache: Cache) -> None:
        super().__init__(release, arch, cache)
        self.name, self.suite, self.keyring = name, suite, keyring
        self._folder = cache.root / "apt" / f"{suite}-{arch}"
        self._folder.mkdir(exist_ok=True)
        self._updated = False

    def _sources(self) -> str:
        """The suite's default sources, asked of mmdebstrap once per version of it."""
        kept = self._folder / f"sources-{sha256_bytes(mmdebstrap.version().encode())[:16]}"
        if not kept.exists():
            with self.cache.scratch() as scratch:
                atomic_write(kept, mmdebstrap.default_sources(self.suite, self.arch, scratch).encode())
        return kept.read_text()

    def _apt(self) -> AptRoot:
        return AptRoot(self._folder, self.arch, self._sources(), self.keyring)

    def resolve(self, wanted: Mapping[str, Sequence[str]], base: str) -> Lock:
        """See Distro; the answer is kept for as long as the archive's signed index stays the same."""
        with exclusive_lock(self._folder / ".lock"):
            apt = self._apt()
            apt.update()
            self._updated = True
            archives, newest = apt.archives()
            epoch = _epoch(newest)
            tools = tool_versions()
            key = json.dumps(
                [
                    [a.release for a in archives],
                    {k: list(v) for k, v in wanted.items()},
                    base,
                    tools,
                    epoch,
                    code_identity("capsulekit.apt.solver", "capsulekit.lock.model"),
                ],
                sort_keys=True,
            )
            index = sha256_bytes(json.dumps([a.release for a in archives]).encode())[:16]
            kept = self._folder / f"lock-{index}-{sha256_bytes(key.encode())}"
            if kept.exists():
                with suppress(CapsulekitError):  # a damaged answer is asked for again
                    return loads(kept.read_text(), str(kept))
            sets = {name: apt.solve(names, name == "rootfs" and base == "essential") for name, names in wanted.items()}
            # The kernel is unpacked, never installed: of all it depends on only the images and their modules count.
            sets["kernel"] = tuple(p for p in sets["kernel"] if p.name.startswith(KERNELS))
            lock = Lock(self.name, self.release, self.arch, epoch, archives, sets, tools)
            for old in self._folder.glob("lock-*"):
                if not old.name.startswith(f"lock-{index}-"):
                    old.unlink()
            atomic_write(kept, lock.dumps().encode())
            return lock

    def fetch(self, packages: Sequence[Package], offline: bool) -> None:
        """See Distro."""
        unique = {p.sha256: p for p in packages}
        lacking = [p for p in unique.values() if not self.cache.has_package(p.sha256)]
        if lacking and offline:
            raise CapsulekitError(
                f"{len(lacking)} locked packages are not in the cache, the first is {lacking[0].filename}",
                hint="run the same command once without --offline",
            )
        if not lacking:
            return
        with exclusive_lock(self._folder / ".lock"):
            apt = self._apt()
            if not self._updated:  # a lock was given: nothing has asked the archive yet
                apt.update()
            paths = apt.download(lacking)
            for package, path in zip(lacking, paths, strict=True):
                self.cache.add_package(path, package.sha256)
                path.unlink()

    def bootstrap(self, lock: Lock, base: str, customize: Path, out: IO[bytes]) -> None:
        """See Distro."""
        packages = lock.sets["rootfs"]
        paths = [self.cache.checked_package(p.sha256) for p in packages]
        with ThreadPoolExecutor() as pool:
            controls = list(pool.map(deb.control, paths))
        repo = customize / "repo"
        repo.mkdir()
        entries = [(path, text, p.size, p.sha256) for path, text, p in zip(paths, controls, packages, strict=True)]
        mmdebstrap.local_repository(repo, self.suite, entries)
        (customize / "sources").write_text(self._sources())
        names = [p.name for p in packages]
        mmdebstrap.make_root(self.suite, self.arch, repo, names, base, lock.epoch, customize, out)
        shutil.rmtree(repo)

    def unpack(self, package: Package, folder: Path) -> None:
        """See Distro."""
        deb.unpack(self.cache.checked_package(package.sha256), folder)
