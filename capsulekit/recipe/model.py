"""A recipe as the build uses it: flat, checked, with the files it names already read."""

from __future__ import annotations

from dataclasses import dataclass

from capsulekit.files import sha256_bytes


@dataclass(frozen=True)
class RootFile:
    """A file the recipe puts into the root: absolute path, bytes, permission bits, owner and group by name."""

    path: str
    data: bytes
    mode: int
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class Script:
    """A script by its file name and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class User:
    """An account of the root. ``uid`` and ``gid`` may be left to the system; ``password``: a crypt(5) hash or None."""

    name: str
    uid: int | None = None
    gid: int | None = None
    groups: tuple[str, ...] = ()
    home: str = ""
    shell: str = ""
    password: str | None = None
    ssh_keys: tuple[str, ...] = ()
    system: bool = False


@dataclass(frozen=True)
class Group:
    """A group of the root; ``gid`` may be left to the system."""

    name: str
    gid: int | None = None


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
    # Lists of package names, each installed on top of the one before: one per recipe of the chain that names any.
    stages: tuple[tuple[str, ...], ...]
    kernel_package: str
    kernel_modules: tuple[str, ...]
    stage2_modules: tuple[str, ...]
    base: str
    groups: tuple[Group, ...] = ()
    users: tuple[User, ...] = ()
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    scripts: tuple[Script, ...] = ()
    files: tuple[RootFile, ...] = ()
    hybridize: tuple[str, ...] = ()
    # further packages whose modules or firmware belong to the kernel
    kernel_extra: tuple[str, ...] = ()
    # (state, script): provision/STATE/NN-name of the capsule
    provision: tuple[tuple[str, Script], ...] = ()
    # configure.toml of the capsule, in its one spelling; empty when nothing is asked at import
    configure: bytes = b""
    level: int = 3
    # zstd level of `build --release`
    release_level: int = 15
    # bytes of RAM the booted root may take (layers and room to write); None: not checked
    ram_max: int | None = None

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages of all stages."""
        return tuple(name for stage in self.stages for name in stage)

    @property
    def full_name(self) -> str:
        """NAME-VERSION.ARCH, the name an installed capsule has."""
        return f"{self.name}-{self.version}.{self.arch}"

    @property
    def digest(self) -> str:
        """Hex sha256 of the flattened recipe, which holds every file and script it names."""
        return sha256_bytes(self.text.encode())
