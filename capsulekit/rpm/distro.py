"""Distributions that install with dnf: choose and download with dnf, check with rpm, install with dnf from files."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from capsulekit.cache import Cache, code_identity
from capsulekit.distro.base import SITE_REPOS, Distro
from capsulekit.errors import CapsulekitError, TrustError
from capsulekit.files import atomic_write, exclusive_lock, sha256_bytes, sha256_file
from capsulekit.lock.model import Archive, Lock, Package, Request, epoch_of, loads
from capsulekit.rootfs.normalise import VERSION as NORMALISER
from capsulekit.rpm import dnf
from capsulekit.rpm.header import NoHeader, package_header
from capsulekit.rpm.keys import Keyring, rpm_version
from capsulekit.tools import tool_versions
from capsulekit.trust.openpgp import read_keys
from capsulekit.watch import arriving

# Our spelling of an architecture -> RPM's.
ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}
MERGED_USR = "bin=usr/bin sbin=usr/sbin lib=usr/lib lib64=usr/lib64"
# What an installed system of this family cannot do without, beside its own release package.
ESSENTIAL = (
    "basesystem", "bash", "coreutils", "filesystem", "findutils", "glibc-minimal-langpack", "grep", "rpm", "sed",
    "setup", "shadow-utils", "util-linux",
)  # fmt: skip
KERNEL_PARTS = ("core", "modules", "modules-core", "modules-extra")
HOST_REPOS = Path("/etc/yum.repos.d")
HOST_VARS = ("/etc/yum/vars", "/etc/dnf/vars")


@dataclass(frozen=True)
class RpmRelease:
    """What differs between releases: where rpm's (sqlite) database lies, the platform of module streams,
    the package that says which release this is, the links of its merged /usr (see unpack.sh).
    """

    dbpath: str
    platform: str
    release_package: str
    links: str = MERGED_USR


class RpmDistro(Distro):
    """One release of a dnf distribution; ``vendor`` is its name for itself (ID in os-release, also in a purl)."""

    # glibc asks for any language pack: without the small one, the solver would take them all.
    stage2_packages = (
        "acl", "bash", "coreutils", "findutils", "glibc-minimal-langpack", "grep", "kmod", "sed", "util-linux",
    )  # fmt: skip
    hybrid_packages = ("iproute",)

    def __init__(
        self, name: str, vendor: str, title: str, releases: Mapping[str, RpmRelease],
        release: str, arch: str, cache: Cache, repos: Path | None,
    ) -> None:  # fmt: skip
        if release not in releases:
            raise CapsulekitError(f"unknown {title} release {release}", hint="known: " + ", ".join(releases))
        if arch not in ARCHES:
            raise CapsulekitError(f"unknown {title} architecture {arch}", hint="known: " + ", ".join(ARCHES))
        super().__init__(release, arch, cache, repos)
        self.name, self.title, self._about = name, title, releases[release]
        self.purl, self.code = ("rpm", vendor), ("capsulekit.rpm", f"capsulekit.distro.{name}")
        own = f"-{sha256_bytes(str(repos).encode())[:8]}" if repos else ""
        self._folder = cache.root / "dnf" / f"{name}-{release}-{arch}{own}"
        self._target = dnf.Target(release, ARCHES[arch], self._about.platform, self._about.dbpath, self._about.links)

    def tools(self) -> dict[str, str]:
        """See Distro. sqlite lays out the pages of the root's rpm database."""
        return {"dnf": dnf.version(), "rpm": rpm_version(), "sqlite": sqlite3.sqlite_version}

    # --- repositories

    def _repos(self) -> tuple[Path, list[str]]:
        """The folder with *.repo files and those with dnf's variables: the author's, or this machine's own when it runs
        the very release; raises CapsulekitError when there are none.
        """
        if self.repos is not None:
            return self.repos.absolute(), [str(self.repos.absolute() / "vars")]
        with suppress(OSError):
            host = platform.freedesktop_os_release()
            if (host["ID"], host.get("VERSION_ID", "").split(".")[0]) == (self.purl[1], self.release):
                return HOST_REPOS, list(HOST_VARS)
        raise CapsulekitError(
            f"nothing says where the packages of {self.title} {self.release} come from",
            hint=f"put its .repo files and its keys, from {HOST_REPOS} and /etc/pki/rpm-gpg of such a system, into "
            f"{SITE_REPOS}/{self.name}-{self.release} (or below CAPSULEKIT_REPOS_DIR)",
        )

    def _ask(self, action: str, **more: Any) -> dict[str, Any]:
        repos, variables = self._repos()
        question = {
            "action": action,
            "folder": str(self._folder),
            "repos": str(repos),
            "vars": variables,
            "release": self.release,
            "arch": ARCHES[self.arch],
            "platform": self._about.platform,
        }
        return dnf.ask({**question, **more}, f"{self.title} {self.release} for {self.arch}")

    # --- choosing

    def resolve(self, request: Request, keep: Sequence[Package] = ()) -> Lock:
        """See Distro; the answer is kept for as long as the repositories' indexes stay the same."""
        self._repos()
        with exclusive_lock(self._folder.parent / f".{self._folder.name}.lock"):
            self._folder.mkdir(exist_ok=True)
            found = self._ask("update")
            with self.cache.scratch("keys") as scratch:
                keys = tuple(sorted({key for path in found["keys"] for key in read_keys(Path(path))}))
                Keyring(keys, scratch).refuse_expired()
            epoch = epoch_of(max(repo["time"] for repo in found["repos"]))
            archives = tuple(Archive(repo["id"], repo["digest"]) for repo in found["repos"])
            tools = tool_versions(self)
            here = [(package, self.cache.has_package(package.sha256)) for package in keep]
            index = sha256_bytes(json.dumps([[a.suite, a.release] for a in archives]).encode())[:16]
            asked = [
                request.digest, sorted((p.sha256, there) for p, there in here), tools, epoch, NORMALISER,
                code_identity("capsulekit.rpm", "capsulekit.lock.model"), [key.fingerprint for key in keys],
            ]  # fmt: skip
            kept = self._folder / f"lock-{index}-{sha256_bytes(json.dumps(asked).encode())}"
            if kept.exists():
                with suppress(CapsulekitError):  # a damaged answer is asked for again
                    return loads(kept.read_text(), str(kept))
            lock = Lock(
                self.name, self.release, self.arch, epoch, request.digest, NORMALISER, archives, keys,
                self._solve(request, here), tools,
            )  # fmt: skip
            text = lock.dumps()
            loads(text, "the lock")  # what the repositories say has to be as plain as a lock is
            for old in self._folder.glob("lock-*"):
                if not old.name.startswith(f"lock-{index}-"):
                    old.unlink()
            atomic_write(kept, text.encode())
            return lock

    def _solve(self, request: Request, keep: Sequence[tuple[Package, bool]]) -> dict[str, tuple[Package, ...]]:
        essential = [*ESSENTIAL, self._about.release_package] if request.base == "essential" else []
        sets = {"rootfs": request.stages or ((),), "kernel": [request.kernel], "initrd": [request.initrd]}
        with self.cache.scratch("keep") as scratch:
            kept = []
            for number, (one, here) in enumerate(keep):
                file = scratch / f"{number}.rpm"
                if here:
                    file.symlink_to(self.cache.package(one.sha256))
                about = {"name": one.name, "version": one.version, "arch": one.arch, "path": one.path}
                kept.append({**about, "size": one.size, "sha256": one.sha256, "file": str(file) if here else ""})
            answer = self._ask("solve", sets=sets, essential=essential, keep=kept)
        chosen = {name: tuple(Package(**about) for about in answer["sets"][name]) for name in sets}
        # The kernel is unpacked, never installed: of all it depends on, only its image, modules and what was named.
        chosen["kernel"] = tuple(p for p in chosen["kernel"] if self.is_kernel(p) or p.by == "recipe")
        return {name: tuple(sorted(packages)) for name, packages in chosen.items()}

    # --- fetching

    def fetch(self, lock: Lock, packages: Sequence[Package], offline: bool, done: Callable[[int], None]) -> None:
        """See Distro. Every package's signature is checked with the keys of the lock, a cached one's too."""
        unique = {p.sha256: p for p in packages}
        lacking = {p.sha256: p for p in unique.values() if not self.cache.has_package(p.sha256)}
        if lacking and offline:
            first = next(iter(lacking.values()))
            raise CapsulekitError(
                f"{len(lacking)} locked packages are not in the cache, the first is {first.name} {first.version}",
                hint="run the same command once without --offline",
            )
        here = {self.cache.package(sha): package for sha, package in unique.items() if sha not in lacking}
        with self.cache.scratch("fetch") as scratch:
            keyring = Keyring(lock.keys, scratch)
            keyring.check(here)
            if lacking:
                keyring.refuse_expired()
                arrived = scratch / "arrived"
                arrived.mkdir()
                with arriving(arrived, done):
                    paths = self._download(list(lacking.values()), arrived)
                self._take({paths[sha]: package for sha, package in lacking.items()}, keyring)

    def _download(self, packages: Sequence[Package], folder: Path) -> dict[str, Path]:
        wanted = [{"name": p.name, "version": p.version, "arch": p.arch, "sha256": p.sha256} for p in packages]
        with exclusive_lock(self._folder.parent / f".{self._folder.name}.lock"):
            self._folder.mkdir(exist_ok=True)
            answer = self._ask("download", packages=wanted, to=str(folder))
        return {sha: Path(path) for sha, path in answer["paths"].items()}

    def _take(self, arrived: Mapping[Path, Package], keyring: Keyring) -> None:
        """Check everything that arrived, then take it into the cache; raises TrustError naming what does not hold."""
        for path, package in arrived.items():
            name = f"{package.name} {package.version}"
            if path.stat().st_size != package.size or sha256_file(path) != package.sha256:
                raise TrustError(
                    f"the package {name} arrived as something else: {path.stat().st_size} bytes where "
                    f"{package.size} are locked, or another sha256",
                    hint="the mirror serves something else, or cut it short; try again later",
                )
        keyring.check(arrived)
        for path, package in arrived.items():
            _check_name(path, package)
        for path, package in arrived.items():
            self.cache.add_package(path, package.sha256)

    # --- installing

    def install(self, lock: Lock, base: str, stage: int, before: Path | None, work: Path, out: IO[bytes]) -> None:
        """See Distro."""
        folder = work / "packages"
        folder.mkdir()
        for package in lock.sets["rootfs"]:
            if package.stage == stage:
                cached = self.cache.checked_package(package.sha256)
                name = f"{package.name}-{package.version}.{package.arch}.rpm".replace(":", "_")
                try:
                    os.link(cached, folder / name)
                except OSError:
                    (folder / name).symlink_to(cached)
        dnf.make_root(self._target, folder, before, base == "extract", lock.epoch, work, out)

    def finish(self, work: Path) -> None:
        """See Distro: the release's own package brings its .repo files and keys."""

    def unpack(self, package: Package, folder: Path) -> None:
        """See Distro."""
        dnf.unpack(self.cache.checked_package(package.sha256), self._about.links, folder)

    def is_kernel(self, package: Package) -> bool:
        """See Distro: kernel-core, kernel-modules and so on, also of variants such as kernel-rt."""
        first, _, rest = package.name.partition("-")
        return first == "kernel" and any(rest == part or rest.endswith(f"-{part}") for part in KERNEL_PARTS)

    def licences(self, packages: Sequence[Package]) -> Mapping[str, str]:
        """See Distro: out of the package files."""
        found = {}
        for package in packages:
            with suppress(NoHeader):
                found[package.name] = package_header(self.cache.checked_package(package.sha256)).licence
        return found


def _check_name(path: Path, package: Package) -> None:
    """An index that nobody signed could give one signed package the name of another; raises TrustError."""
    header = package_header(path)
    if (header.name, header.version, header.arch) != (package.name, package.version, package.arch):
        raise TrustError(
            f"the package {package.name} {package.version} is in truth {header.name} {header.version} {header.arch}",
            hint="the mirror serves something else",
        )
