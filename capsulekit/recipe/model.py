"""A recipe as the build uses it: flat, checked, with the files it names already read."""

from __future__ import annotations

from dataclasses import dataclass

from capsulekit.files import sha256_bytes


@dataclass(frozen=True)
class RootFile:
    """A file the recipe puts into the root: absolute path, bytes, permission bits."""

    path: str
    data: bytes
    mode: int


@dataclass(frozen=True)
class Script:
    """A script by its file name and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Recipe:
    """What to build. ``text`` is the flattened recipe (no parents left) that travels inside the capsule."""

    source: str
    text: str
    name: str
    version: str
    distro: str
    release: str
    arch: str
    init: str
    cmdline: str
    packages: tuple[str, ...]
    kernel_package: str
    kernel_modules: tuple[str, ...]
    stage2_modules: tuple[str, ...]
    base: str
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    scripts: tuple[Script, ...] = ()
    files: tuple[RootFile, ...] = ()
    hybridize: tuple[str, ...] = ()
    provision: tuple[Script, ...] = ()
    level: int = 3

    @property
    def full_name(self) -> str:
        """NAME-VERSION.ARCH, the name an installed capsule has."""
        return f"{self.name}-{self.version}.{self.arch}"

    @property
    def digest(self) -> str:
        """Hex sha256 over the flattened recipe and every file it names, in order."""
        parts = [self.text.encode()]
        for item in (*self.scripts, *self.provision):
            parts.append(f"{item.name} {sha256_bytes(item.data)}".encode())
        parts += [f"{f.path} {f.mode:o} {sha256_bytes(f.data)}".encode() for f in self.files]
        return sha256_bytes(b"\0".join(parts))
