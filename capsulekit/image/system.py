"""What system a tree made elsewhere holds: its distribution, architecture, first program and kernel."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from initramfs_builder.elf import read_elf
from initramfs_builder.tree import Tree

from capsulekit.errors import CapsulekitError

# ELF class and machine -> what dpkg's world calls it, and what RPM's does.
MACHINES = {
    (64, "EM_X86_64"): ("amd64", "x86_64"),
    (32, "EM_386"): ("i386", "i686"),
    (64, "EM_AARCH64"): ("arm64", "aarch64"),
    (32, "EM_ARM"): ("armhf", "armv7hl"),
    (64, "EM_PPC64"): ("ppc64el", "ppc64le"),
    (64, "EM_RISCV"): ("riscv64", "riscv64"),
    (64, "EM_S390"): ("s390x", "s390x"),
}
# Where a family's package manager keeps its database.
DATABASES = {
    "rpm": ("usr/lib/sysimage/rpm", "var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "var/lib/rpm/Packages.db"),
    "deb": ("var/lib/dpkg/status",),
}
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
IMAGE = "vmlinuz-"


@dataclass(frozen=True)
class Kernel:
    """A kernel of a tree: its release, its image on this host, and its modules' folder (path in the tree)."""

    release: str
    image: Path
    modules: str


@dataclass(frozen=True)
class System:
    """``family`` is the type of its packages ("deb", "rpm", or "any"); ``init`` lies at ``init_file`` in the tree."""

    distro: str
    release: str
    arch: str
    family: str
    init_file: str
    kernel: Kernel


def identify(root: Path, init: str, kernel: str | None) -> System:
    """Look a tree over; ``kernel`` chooses one of several by its release. Raises CapsulekitError saying what lacks."""
    tree = Tree(root)
    first = tree.resolve(init)
    if first is None or not first.host.is_file():
        raise CapsulekitError(f"{root} has no {init} to start", hint="name its first program with --init")
    family = next((name for name, paths in DATABASES.items() if any(tree.resolve(path) for path in paths)), "any")
    distro, release = _os_release(tree)
    arch = _arch(tree, init, family)
    return System(distro, release, arch, family, _place(tree, first.host), _kernel(tree, kernel))


def _place(tree: Tree, host: Path) -> str:
    """Where a file of the host lies in the tree."""
    return str(host.relative_to(tree.root))


def _os_release(tree: Tree) -> tuple[str, str]:
    """ID and VERSION_ID of os-release(5), with its default for a system that does not say."""
    said: dict[str, str] = {}
    for path in ("etc/os-release", "usr/lib/os-release"):
        found = tree.resolve(path)
        if found is not None and found.host.is_file():
            for line in found.host.read_text("utf-8", "replace").splitlines():
                key, equals, value = line.strip().partition("=")
                if equals and not key.startswith("#"):
                    said[key] = _unquoted(value)
            break
    # A rolling distribution has a code name, or a build, instead of a number.
    versions = (said.get(key) for key in ("VERSION_ID", "VERSION_CODENAME", "BUILD_ID"))
    return said.get("ID") or "linux", next((version for version in versions if version), "unversioned")


def _unquoted(value: str) -> str:
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value


def _arch(tree: Tree, init: str, family: str) -> str:
    # The first program may be a script; a shell or the C library never is.
    for path in (init, "usr/bin/sh", "usr/bin/busybox", "usr/lib64/libc.so.6", "usr/lib/libc.so.6"):
        found = tree.resolve(path)
        elf = read_elf(found.host) if found is not None and found.host.is_file() else None
        if elf is not None:
            if elf.kind not in MACHINES:
                raise CapsulekitError(f"{path} in {tree.root} is for a machine of an unknown kind: {elf.kind[1]}")
            return MACHINES[elf.kind][family == "rpm"]
    raise CapsulekitError(f"{tree.root} holds no program that says for which machine it is", hint=f"looked at {init}")


def find_kernel(root: Path, release: str) -> Kernel:
    """The kernel of this release in a root. Raises CapsulekitError when it, or its modules, are not there."""
    return _kernel(Tree(root), release)


def _kernel(tree: Tree, wanted: str | None) -> Kernel:
    """The one kernel that has an image and modules, or the one that is wanted."""
    images = {name.removeprefix(IMAGE) for name in tree.listing("boot") if name.startswith(IMAGE)}
    modules = set(tree.listing("usr/lib/modules"))
    images |= {release for release in modules if tree.resolve(f"usr/lib/modules/{release}/vmlinuz")}
    complete = sorted(release for release in images & modules if RELEASE.fullmatch(release))
    if wanted is not None and wanted not in complete:
        known = ", ".join(complete) or "none"
        raise CapsulekitError(f"{tree.root} has no kernel {wanted} with its modules", hint=f"kernels there: {known}")
    if not complete:
        told = f"no modules for its kernel {min(images)}" if images else "no kernel (boot/vmlinuz-RELEASE)"
        raise CapsulekitError(f"{tree.root} has {told}", hint="install a kernel package there")
    if wanted is None and len(complete) > 1:
        known = ", ".join(complete)
        raise CapsulekitError(f"{tree.root} has {len(complete)} kernels: {known}", hint="choose one with --kernel")
    return _found_kernel(tree, wanted or complete[0])


def _found_kernel(tree: Tree, release: str) -> Kernel:
    folder = tree.resolve(f"usr/lib/modules/{release}")
    image = tree.resolve(f"boot/{IMAGE}{release}") or tree.resolve(f"usr/lib/modules/{release}/vmlinuz")
    assert folder is not None
    place = _place(tree, folder.host)
    if place not in (f"usr/lib/modules/{release}", f"lib/modules/{release}"):
        raise CapsulekitError(
            f"the modules of kernel {release} are a link to /{place}", hint="move them to their place"
        )
    if image is None or not image.host.is_file():
        raise CapsulekitError(f"the image of kernel {release} in {tree.root} is no file")
    return Kernel(release, image.host, place)
