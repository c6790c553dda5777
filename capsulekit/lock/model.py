"""The lock: everything outside the recipe that decides a capsule's bytes, as a deterministic TOML file."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import tomlkit

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes

FORMAT = 1
SHA256 = re.compile(r"[0-9a-f]{64}")
SETS = ("rootfs", "kernel", "initrd")


@dataclass(frozen=True, order=True)
class Package:
    """One package file: ``path`` is relative to the archive's root, ``size`` in bytes, ``sha256`` hex."""

    name: str
    version: str
    arch: str
    size: int
    sha256: str
    path: str

    @property
    def filename(self) -> str:
        """Name under which apt keeps it: the epoch's colon is escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"


@dataclass(frozen=True, order=True)
class Archive:
    """A signed index the packages were chosen from: its suite and the sha256 of its Release file."""

    suite: str
    release: str


@dataclass(frozen=True)
class Lock:
    """``epoch`` is the build's time in seconds since 1970; ``sets`` says which packages make which part."""

    distro: str
    release: str
    arch: str
    epoch: int
    archives: tuple[Archive, ...]
    sets: dict[str, tuple[Package, ...]]
    tools: dict[str, str]

    def dumps(self) -> str:
        """The lock as TOML; the same lock always gives the same text."""
        doc = tomlkit.document()
        doc.add(tomlkit.comment("Made by capsulekit lock; edit the recipe, not this file."))
        doc.update(format=FORMAT, distro=self.distro, release=self.release, arch=self.arch, epoch=self.epoch)
        doc["tools"] = dict(sorted(self.tools.items()))
        doc["archive"] = [asdict(a) for a in sorted(self.archives)]
        for name in SETS:
            doc[name] = [asdict(p) for p in sorted(self.sets[name])]
        return tomlkit.dumps(doc)

    @property
    def digest(self) -> str:
        """Hex sha256 of the lock's text."""
        return sha256_bytes(self.dumps().encode())


def loads(text: str, where: str) -> Lock:
    """Read a lock; raises CapsulekitError naming ``where`` and what is wrong."""
    try:
        raw = tomllib.loads(text)
        if raw.pop("format") != FORMAT:
            raise CapsulekitError(f"{where}: this lock has another format", hint="make it again with capsulekit lock")
        sets = {name: tuple(Package(**p) for p in raw.pop(name)) for name in SETS}
        archives = tuple(Archive(**a) for a in raw.pop("archive"))
        lock = Lock(archives=archives, sets=sets, **raw)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise CapsulekitError(f"{where}: not a lock: {error}", hint="make it again with capsulekit lock") from None
    for package in (p for packages in lock.sets.values() for p in packages):
        _check_package(package, where)
    if not isinstance(lock.epoch, int) or not 0 <= lock.epoch < 1 << 33:
        raise CapsulekitError(f"{where}: epoch must be seconds since 1970")
    return lock


def load(path: Path) -> Lock:
    """Read the lock file at ``path``."""
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CapsulekitError(f"{path}: the lock cannot be read: {error}") from None


def _check_package(package: Package, where: str) -> None:
    texts = (package.name, package.version, package.arch, package.path)
    plain = all(isinstance(t, str) and re.fullmatch(r"[A-Za-z0-9+.~:%_/-]+", t) for t in texts)
    if not plain or not SHA256.fullmatch(str(package.sha256)) or not isinstance(package.size, int):
        raise CapsulekitError(f"{where}: package {package.name!r} is malformed", hint="make it again with capsulekit lock")
    if package.path.startswith("/") or ".." in package.path.split("/") or "/" in package.filename:
        raise CapsulekitError(f"{where}: package {package.name!r} has an unsafe path {package.path!r}")
