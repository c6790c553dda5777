"""The lock: everything outside the recipe that decides a capsule's bytes, as a deterministic TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_bytes

FORMAT = 1
SHA256 = re.compile(r"[0-9a-f]{64}")
# Debian policy 5.6.1 and 5.6.12: nothing here can be taken for an option of apt.
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~:-]*")
PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~:%_/-]*")
MAX_EPOCH = (1 << 32) - 1  # squashfs keeps times in 32 bits
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
        head = {
            "format": FORMAT,
            "distro": self.distro,
            "release": self.release,
            "arch": self.arch,
            "epoch": self.epoch,
        }
        lines = ["# Made by capsulekit lock; edit the recipe, not this file.", *_pairs(head)]
        lines += [f"{name} = []" for name in SETS if not self.sets[name]]
        lines += ["", "[tools]"]
        lines += _pairs(dict(sorted(self.tools.items())))
        for archive in sorted(self.archives):
            lines += ["", "[[archive]]", *_pairs(asdict(archive))]
        for name in SETS:
            for package in sorted(self.sets[name]):
                lines += ["", f"[[{name}]]", *_pairs(asdict(package))]
        return "\n".join(lines) + "\n"

    @property
    def digest(self) -> str:
        """Hex sha256 of the lock's text."""
        return sha256_bytes(self.dumps().encode())


def _pairs(values: Mapping[str, object]) -> list[str]:
    """TOML lines. Written by hand: every text is plain (see loads), and a TOML library takes a third of a second."""
    return [f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"' for key, value in values.items()]


def loads(text: str, where: str) -> Lock:
    """Read a lock; raises CapsulekitError naming ``where`` and what is wrong."""
    try:
        raw = tomllib.loads(text)
        if raw.pop("format") != FORMAT:
            raise CapsulekitError(f"{where}: this lock has another format", hint="make it again with capsulekit lock")
        sets = {name: tuple(Package(**p) for p in raw.pop(name)) for name in SETS}
        archives = tuple(Archive(**a) for a in raw.pop("archive"))
        lock = Lock(archives=archives, sets=sets, **raw)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, RecursionError) as error:
        raise CapsulekitError(f"{where}: not a lock: {error}", hint="make it again with capsulekit lock") from None
    for package in (p for packages in lock.sets.values() for p in packages):
        _check_package(package, where)
    if type(lock.epoch) is not int or not 0 <= lock.epoch <= MAX_EPOCH:
        raise CapsulekitError(f"{where}: epoch must be seconds since 1970")
    texts = [lock.distro, lock.release, lock.arch, *(t for a in archives for t in (a.suite, a.release))]
    if not isinstance(lock.tools, dict) or not all(isinstance(t, str) for t in (*texts, *lock.tools.values())):
        raise CapsulekitError(
            f"{where}: not a lock: a text is something else", hint="make it again with capsulekit lock"
        )
    return lock


def load(path: Path) -> Lock:
    """Read the lock file at ``path``."""
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise CapsulekitError(f"{path}: the lock cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise CapsulekitError(f"{path}: the lock cannot be read: {error.strerror}") from None


def _check_package(package: Package, where: str) -> None:
    fields = ((package.name, NAME), (package.arch, NAME), (package.version, VERSION), (package.path, PATH))
    plain = all(isinstance(text, str) and rule.fullmatch(text) for text, rule in fields)
    sized = type(package.size) is int and package.size > 0
    if not plain or not sized or not SHA256.fullmatch(str(package.sha256)):
        raise CapsulekitError(
            f"{where}: package {package.name!r} is malformed", hint="make it again with capsulekit lock"
        )
    if package.path.startswith("/") or ".." in package.path.split("/") or "/" in package.filename:
        raise CapsulekitError(f"{where}: package {package.name!r} has an unsafe path {package.path!r}")
