"""The lock: everything outside the recipe that decides a capsule's bytes, as a deterministic TOML file."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import sha256_bytes

FORMAT = 2
SHA256 = re.compile(r"[0-9a-f]{64}")
# Debian policy 5.6.1 and 5.6.12, and what RPM allows beyond: nothing here can be taken for an option of apt or dnf.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~^:_-]*")
PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~^:%_/-]*")
FINGERPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
MAX_EPOCH = (1 << 32) - 1  # squashfs keeps times in 32 bits
SETS = ("rootfs", "kernel", "initrd")


@dataclass(frozen=True, order=True)
class Package:
    """One package file: ``path`` is relative to the archive's root, ``size`` in bytes, ``sha256`` hex.

    ``version`` is the distribution's full spelling (RPM: EPOCH:VERSION-RELEASE, the epoch only when it is not 0).
    ``stage`` is the recipe's stage that brought it (from 0); ``by`` says what asked for it: a package's name, or
    "recipe", or "essential".
    """

    name: str
    version: str
    arch: str
    size: int
    sha256: str
    path: str
    stage: int = 0
    by: str = ""


@dataclass(frozen=True, order=True)
class Archive:
    """A signed index the packages were chosen from: its suite and the sha256 of its Release file."""

    suite: str
    release: str


@dataclass(frozen=True, order=True)
class Key:
    """A key that vouches for the archives: its OpenPGP fingerprint and the key itself, ASCII-armoured."""

    fingerprint: str
    text: str


@dataclass(frozen=True)
class Request:
    """What a recipe asks of a distribution: package names by part, and how the root is made (``base``)."""

    base: str
    stages: tuple[tuple[str, ...], ...]
    kernel: tuple[str, ...]
    initrd: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Hex sha256: a lock holds it, so that a lock of another recipe is noticed."""
        return sha256_bytes(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True)
class Lock:
    """``epoch`` is the build's time in seconds since 1970; ``sets`` says which packages make which part.

    ``request`` is the Request's digest, ``normaliser`` the version of the normaliser's table.
    """

    distro: str
    release: str
    arch: str
    epoch: int
    request: str
    normaliser: int
    archives: tuple[Archive, ...]
    keys: tuple[Key, ...]
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
            "request": self.request,
            "normaliser": self.normaliser,
        }
        lines = ["# Made by capsulekit lock; edit the recipe, not this file.", *_pairs(head)]
        lines += [f"{name} = []" for name in SETS if not self.sets[name]]
        lines += ["", "[tools]"]
        lines += _pairs(dict(sorted(self.tools.items())))
        for archive in sorted(self.archives):
            lines += ["", "[[archive]]", *_pairs(asdict(archive))]
        for key in sorted(self.keys):
            lines += ["", "[[key]]", *_pairs({"fingerprint": key.fingerprint}), f'text = """\n{key.text}"""']
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


def epoch_of(newest: int) -> int:
    """The build's time: SOURCE_DATE_EPOCH where it is set, else the archive's own date; raises UsageError."""
    said = os.environ.get("SOURCE_DATE_EPOCH") or str(newest)
    if not said.isdecimal() or int(said) > MAX_EPOCH:
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, not {said!r}")
    return int(said)


def loads(text: str, where: str) -> Lock:
    """Read a lock; raises CapsulekitError naming ``where`` and what is wrong."""
    try:
        raw = tomllib.loads(text)
        if raw.pop("format") != FORMAT:
            raise CapsulekitError(f"{where}: this lock has another format", hint="make it again with capsulekit lock")
        sets = {name: tuple(Package(**p) for p in raw.pop(name)) for name in SETS}
        archives = tuple(Archive(**a) for a in raw.pop("archive", []))
        keys = tuple(Key(**k) for k in raw.pop("key", []))
        lock = Lock(archives=archives, keys=keys, sets=sets, **raw)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, RecursionError) as error:
        raise CapsulekitError(f"{where}: not a lock: {error}", hint="make it again with capsulekit lock") from None
    for package in (p for packages in lock.sets.values() for p in packages):
        _check_package(package, where)
    for key in lock.keys:
        if not FINGERPRINT.fullmatch(str(key.fingerprint)) or not _armoured(key.text):
            raise CapsulekitError(f"{where}: a key is malformed", hint="make it again with capsulekit lock")
    if type(lock.normaliser) is not int:
        raise CapsulekitError(f"{where}: normaliser must be a number", hint="make it again with capsulekit lock")
    if type(lock.epoch) is not int or not 0 <= lock.epoch <= MAX_EPOCH:
        raise CapsulekitError(f"{where}: epoch must be seconds since 1970")
    texts = [lock.distro, lock.release, lock.arch, lock.request, *(t for a in archives for t in (a.suite, a.release))]
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


def _armoured(text: object) -> bool:
    """An ASCII armour (RFC 9580, 6.2) that needs no escape in the lock's text."""
    return (
        isinstance(text, str) and text.startswith("-----BEGIN PGP") and text.isascii() and not set('"\\\r') & set(text)
    )


def _check_package(package: Package, where: str) -> None:
    fields = ((package.name, NAME), (package.arch, NAME), (package.version, VERSION), (package.path, PATH))
    plain = all(isinstance(text, str) and rule.fullmatch(text) for text, rule in fields)
    sized = type(package.size) is int and package.size > 0
    if not plain or not sized or not SHA256.fullmatch(str(package.sha256)):
        raise CapsulekitError(
            f"{where}: package {package.name!r} is malformed", hint="make it again with capsulekit lock"
        )
    if (package.by and not NAME.fullmatch(str(package.by))) or type(package.stage) is not int or package.stage < 0:
        raise CapsulekitError(f"{where}: package {package.name!r} has a malformed stage or by")
    if package.path.startswith("/") or ".." in package.path.split("/"):
        raise CapsulekitError(f"{where}: package {package.name!r} has an unsafe path {package.path!r}")
