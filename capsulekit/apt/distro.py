"""Distributions that install with apt: solve and download with apt, install with mmdebstrap."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from capsulekit.apt import deb, mmdebstrap
from capsulekit.apt.solver import AptRoot
from capsulekit.cache import Cache, code_identity
from capsulekit.distro.base import Distro
from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, exclusive_lock, sha256_bytes
from capsulekit.lock.model import Key, Lock, Package, Request, epoch_of, loads
from capsulekit.rootfs.normalise import VERSION as NORMALISER
from capsulekit.tools import tool_versions
from capsulekit.trust import openpgp
from capsulekit.watch import arriving

DEFAULT_COMPONENTS = ("main",)  # of mmdebstrap's sources
KERNELS = ("linux-image-", "linux-modules-")


class AptDistro(Distro):
    """One suite of an apt distribution. ``keyring`` may be missing where the author brings archives and keys."""

    stage2_packages = ("acl", "busybox-static")

    def __init__(
        self, name: str, release: str, suite: str, arch: str, keyring: Path, cache: Cache, repos: Path | None
    ) -> None:
        super().__init__(release, arch, cache, repos)
        self.name, self.suite, self._keyring = name, suite, keyring
        self.purl, self.code = ("deb", name), ("capsulekit.apt", f"capsulekit.distro.{name}")
        self._components: tuple[str, ...] = ()
        self._folder = self._index_folder()

    def _index_folder(self) -> Path:
        """Index files of other archives, keys or components are other index files."""
        own = f"-{sha256_bytes(str(self.repos).encode())[:8]}" if self.repos else ""
        parts = "".join(f"-{one}" for one in self._components)
        folder = self.cache.root / "apt" / f"{self.name}-{self.suite}-{self.arch}{parts}{own}"
        folder.mkdir(exist_ok=True)
        return folder

    def choose_components(self, components: Sequence[str]) -> None:
        """See Distro. The author's own archives say themselves which they have."""
        if self.repos is None and tuple(components) != DEFAULT_COMPONENTS:
            self._components = tuple(components)
            self._folder = self._index_folder()

    def tools(self) -> dict[str, str]:
        """See Distro."""
        return {"mmdebstrap": mmdebstrap.version(), "dpkg": deb.dpkg_version()}

    # --- archives and keys

    def _default_sources(self) -> str:
        """The suite's default sources, asked of mmdebstrap once per version of it."""
        kept = self._folder / f"sources-{sha256_bytes(mmdebstrap.version().encode())[:16]}"
        if not kept.exists():
            with self.cache.scratch() as scratch:
                atomic_write(
                    kept, mmdebstrap.default_sources(self.suite, self.arch, scratch, self._components).encode()
                )
        return kept.read_text()

    def _sources(self) -> str:
        if self.repos is None:
            return self._default_sources()
        try:
            return (self.repos / "sources.list").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CapsulekitError(
                f"{self.repos}/sources.list cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}",
                hint=f"it names the archives of {self.name} {self.release} in apt's one-line form",
            ) from None

    def _keys(self) -> list[Key]:
        """The keys that may vouch for the archives: the distribution's, or those beside the author's sources.list."""
        rings = [self._keyring]
        if self.repos is not None:
            rings = sorted(p for p in self.repos.iterdir() if p.suffix in (".gpg", ".asc")) or rings
        for ring in rings:
            if not ring.exists():
                raise CapsulekitError(
                    f"{ring} is missing: the archive of {self.name} cannot be verified without it",
                    hint=f"install {ring.stem}, or put the keys beside sources.list into the folder "
                    f"{self.name}-{self.release} of the author's archives (see docs/reference/recipe.md)",
                )
        return [key for ring in rings for key in openpgp.read_keys(ring)]

    def _apt(self, trusted: Sequence[Key]) -> AptRoot:
        ring = self._folder / "keys.gpg"
        content = openpgp.binary(trusted)
        if not ring.exists() or ring.read_bytes() != content:
            atomic_write(ring, content)
        return AptRoot(self._folder, self.arch, self._sources(), ring)

    # --- choosing

    def resolve(self, request: Request, keep: Sequence[Package] = ()) -> Lock:
        """See Distro; the answer is kept for as long as the archive's signed index stays the same."""
        with exclusive_lock(self._folder / ".lock"):
            trusted = self._keys()
            apt = self._apt(trusted)
            apt.update()
            archives, newest = apt.archives()
            epoch = epoch_of(newest)
            tools = tool_versions(self)
            index = sha256_bytes(json.dumps([a.release for a in archives]).encode())[:16]
            code = code_identity("capsulekit.apt.solver", "capsulekit.trust.openpgp", "capsulekit.lock.model")
            asked = [request.digest, sorted(p.sha256 for p in keep), tools, epoch, NORMALISER, code]
            kept = self._folder / f"lock-{index}-{sha256_bytes(json.dumps(asked).encode())}"
            if kept.exists():
                with suppress(CapsulekitError):  # a damaged answer is asked for again
                    return loads(kept.read_text(), str(kept))
            ring = [self._folder / "keys.gpg"]
            signers = {key for path in apt.indexes() for key in openpgp.vouching(path, ring, trusted)}
            with self._kept(apt, keep):
                sets = self._solve(apt, request)
            sets = {name: _as_kept(packages, keep) for name, packages in sets.items()}
            lock = Lock(
                self.name, self.release, self.arch, epoch, request.digest, NORMALISER,
                archives, tuple(sorted(signers)), sets, tools,
            )  # fmt: skip
            for old in (*self._folder.glob("lock-*"), *self._folder.glob("status-*")):
                if not old.name.startswith(f"lock-{index}-"):
                    old.unlink()
            atomic_write(kept, lock.dumps().encode())
            return lock

    def _solve(self, apt: AptRoot, request: Request) -> dict[str, tuple[Package, ...]]:
        essential = request.base == "essential"
        with ThreadPoolExecutor() as pool:
            rootfs = pool.submit(apt.solve_stages, request.stages or ((),), essential)
            kernel = pool.submit(apt.solve_stages, [request.kernel], False)
            initrd = pool.submit(apt.solve_stages, [request.initrd], False)
        return {
            "rootfs": rootfs.result(),
            # It is unpacked, never installed: of all it depends on only the images and their modules count.
            "kernel": tuple(p for p in kernel.result() if self.is_kernel(p) or p.name in request.kernel[1:]),
            "initrd": initrd.result(),
        }

    @contextmanager
    def _kept(self, apt: AptRoot, keep: Sequence[Package]) -> Iterator[None]:
        """Pin packages to the versions a lock has; what the archive no longer holds comes out of the cache."""
        if not keep:
            yield
            return
        with self.cache.scratch() as scratch:
            here = [p for p in keep if self.cache.has_package(p.sha256)]
            mmdebstrap.local_repository(scratch, self.suite, self._entries(here))
            apt.pin(keep, scratch)
            try:
                apt.update()
                yield
            finally:
                apt.pin((), None)

    # --- fetching

    def fetch(self, lock: Lock, packages: Sequence[Package], offline: bool, done: Callable[[int], None]) -> None:
        """See Distro. The index is verified with the keys of the lock."""
        unique = {p.sha256: p for p in packages}
        lacking = [p for p in unique.values() if not self.cache.has_package(p.sha256)]
        if lacking and offline:
            raise CapsulekitError(
                f"{len(lacking)} locked packages are not in the cache, the first is {lacking[0].name} "
                f"{lacking[0].version}",
                hint="run the same command once without --offline",
            )
        if not lacking:
            return
        with exclusive_lock(self._folder / ".lock"), self.cache.scratch("fetch") as folder:
            apt = self._apt(lock.keys)
            apt.update()
            with arriving(folder, done):
                apt.download(lacking, folder, lambda package, path: self._take(package, path))

    def _take(self, package: Package, path: Path) -> None:
        self.cache.add_package(path, package.sha256)

    # --- installing

    def _entries(self, packages: Sequence[Package]) -> list[tuple[Path, str, int, str]]:
        paths = [self.cache.checked_package(p.sha256) for p in packages]
        with ThreadPoolExecutor() as pool:
            controls = list(pool.map(deb.control, paths))
        return [(path, text, p.size, p.sha256) for path, text, p in zip(paths, controls, packages, strict=True)]

    def install(self, lock: Lock, base: str, stage: int, before: Path | None, work: Path, out: IO[bytes]) -> None:
        """See Distro. The first stage is mmdebstrap's work; what comes on top is apt's, in the root that is there."""
        packages = [p for p in lock.sets["rootfs"] if p.stage == stage]
        # mmdebstrap's helpers drop privileges; the folder itself must be reachable for them, its content is public.
        work.chmod(0o755)
        repo = work / "repo"
        repo.mkdir()
        entries = self._entries(packages)
        mmdebstrap.local_repository(repo, self.suite, entries)
        needed = sum(size + deb.installed_size(control) for _, control, size, _ in entries)
        needed += before.stat().st_size if before else 0
        names = [p.name for p in packages]
        plan = mmdebstrap.Plan(self.suite, self.arch, repo, names, base, lock.epoch, needed, work)
        if before is None:
            mmdebstrap.make_root(plan, out)
        else:
            mmdebstrap.add_to_root(plan, before, out)
        shutil.rmtree(repo)

    def finish(self, work: Path) -> None:
        """See Distro: the finished root gets the suite's default sources, whatever this build's packages came from."""
        (work / "sources").write_text(self._default_sources())

    def unpack(self, package: Package, folder: Path) -> None:
        """See Distro."""
        deb.unpack(self.cache.checked_package(package.sha256), folder)

    def is_kernel(self, package: Package) -> bool:
        """See Distro."""
        return package.name.startswith(KERNELS)


def _as_kept(packages: Sequence[Package], keep: Sequence[Package]) -> tuple[Package, ...]:
    """The same packages; what was kept has its path in the archive, not in the repository it was kept in."""
    paths = {p.sha256: p.path for p in keep}
    fields = ((p, paths.get(p.sha256, p.path)) for p in packages)
    return tuple(Package(p.name, p.version, p.arch, p.size, p.sha256, path, p.stage, p.by) for p, path in fields)
