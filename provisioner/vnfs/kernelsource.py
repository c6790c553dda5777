"""Where a new kernel comes from: packages named by the admin, a signed capsule file, or an installed capsule."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capsulekit.capsule.manifest import Layer, Manifest
from capsulekit.edit.stack import Image
from capsulekit.errors import CapsulekitError
from capsulekit.files import sha256_file
from capsulekit.image.system import MACHINES
from provisioner.vnfs.store import VnfsStore
from provisioner.vnfs.views import view

IMAGE, INITRD, MODULES = "boot/vmlinuz", "boot/initrd.img", "layers/modules.squashfs"
# A package, by how it begins: ar's magic of a .deb, the lead of an .rpm.
_DEB, _RPM = b"!<arch>\n", b"\xed\xab\xee\xdb"
_PACKAGES = ("deb", "rpm")
# What packages of a merged /usr need to be unpacked through (capsulekit/rpm/unpack.sh).
_MERGED = "bin=usr/bin sbin=usr/sbin lib=usr/lib lib64=usr/lib64"
_LEVEL = 3


@dataclass(frozen=True)
class Root:
    """What the new kernel has to fit: ``prefix`` is "lib" or "usr/lib", where the root keeps its modules."""

    arch: str
    prefix: str
    epoch: int
    level: int = _LEVEL


@dataclass(frozen=True)
class NewKernel:
    """A kernel to be a capsule's: files below the work folder, or the store's blobs.

    ``layer`` describes the modules layer and ``modules`` is its file; ``acl`` its list of ACLs, if any. ``proof`` tells
    what the kernel unpacks (see ``rebuild_initrd``). ``whence`` is for people.
    """

    release: str
    image: Path
    modules: Path
    layer: Layer
    acl: Path | None
    proof: Path
    whence: str


def new_kernel(store: VnfsStore, sources: Sequence[str], root: Root, work: Path, firmware: Path | None) -> NewKernel:
    """The one kernel that the sources hold, made fit for ``root``; written below ``work``.

    Packages may be several (image and modules); a capsule is alone. ``firmware`` is the firmware folder of the modules
    layer so far: what packages don't bring of it goes along. Raises CapsulekitError when a source is unknown or of
    another architecture, or not one kernel is in them; TrustError for a capsule that nobody trusted here signed.
    """
    kinds = check_sources(store, sources, root.arch)
    if kinds[0] in _PACKAGES:
        return _from_packages([Path(word) for word in sources], kinds, root, work, firmware)
    if kinds == ["file"]:
        return _from_file(store, Path(sources[0]), root, work)
    return _from_installed(store, sources[0], root, work)


def check_sources(store: VnfsStore, sources: Sequence[str], arch: str) -> list[str]:
    """What each source is, as far as that can be told at once; raises CapsulekitError as ``new_kernel`` does."""
    kinds = [_kind(word) for word in sources]
    if len(sources) > 1 and any(kind not in _PACKAGES for kind in kinds):
        raise CapsulekitError("a kernel comes from packages or from one capsule, not from both", hint="name one source")
    for word, kind in zip(sources, kinds, strict=True):
        its = store.manifest(store.get(word).name).arch if kind == "installed" else None
        its = _arch_of(Path(word), kind) if kind in _PACKAGES else its
        if its is not None and not same_arch(its, arch):
            raise CapsulekitError(f"{word} is for {its}, and the capsule is for {arch}")
    return kinds


def same_arch(one: str, other: str) -> bool:
    """Whether two spellings mean the same machine: dpkg says amd64, RPM x86_64."""
    return one == other or any({one, other} <= set(names) for names in MACHINES.values())


def _kind(word: str) -> str:
    """deb, rpm, file (a capsule's, or what else it may be) or installed. Raises CapsulekitError for a missing file."""
    path = Path(word)
    if not path.is_file():
        if "/" in word or path.suffix in (".deb", ".rpm", ".vnfs"):
            raise CapsulekitError(f"there is no file {word}", hint="name a package, a capsule file or a capsule")
        return "installed"
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as wrong:
        raise CapsulekitError(f"can't read {word}: {wrong.strerror}") from wrong
    return "deb" if start == _DEB else "rpm" if start.startswith(_RPM) else "file"


# --- packages


def _from_packages(
    paths: Sequence[Path], kinds: Sequence[str], root: Root, work: Path, firmware: Path | None
) -> NewKernel:
    from capsulekit.kernel import kernel_tree, write_modules

    tree = work / "kernel"
    tree.mkdir(mode=0o700)
    for path, kind in zip(paths, kinds, strict=True):
        _unpack(path, kind, tree)
    names = [path.name for path in paths]
    kernel = kernel_tree(tree, names, "name the package with the image and those with its modules: --from A --from B")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", kernel.release) is None:
        raise CapsulekitError(f"the kernel's release can't be {kernel.release[:80]!r}: {', '.join(names)}")
    folders = {f"{root.prefix}/modules/{kernel.release}": kernel.modules}
    if firmware is not None:
        _add_firmware(firmware, tree / "usr/lib/firmware")
    if (tree / "usr/lib/firmware").is_dir():
        folders[f"{root.prefix}/firmware"] = tree / "usr/lib/firmware"
    out = work / "modules.squashfs"
    unpacked = write_modules(out, folders, root.epoch, root.level)
    layer = Layer(MODULES, out.stat().st_size, sha256_file(out), unpacked)
    return NewKernel(kernel.release, kernel.image, out, layer, None, tree, ", ".join(names))


def _arch_of(path: Path, kind: str) -> str:
    if kind == "rpm":
        from capsulekit.rpm.header import package_header

        return package_header(path).arch
    from capsulekit.apt.deb import read_control

    found = re.search(r"^Architecture: *(\S+)$", read_control(path), re.MULTILINE)
    return found[1] if found else "a machine that it does not name"


def _unpack(path: Path, kind: str, tree: Path) -> None:
    if kind == "rpm":
        from capsulekit.rpm.dnf import unpack

        unpack(path, _MERGED, tree)
    else:
        from capsulekit.apt.deb import unpack as unpack_deb

        unpack_deb(path, tree)


def _add_firmware(old: Path, new: Path) -> None:
    """Copy what the new firmware folder lacks of the old one; links as links."""
    for path in sorted(old.rglob("*")):
        target = new / path.relative_to(old)
        if (path.is_symlink() or path.is_file()) and not target.exists() and not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)


# --- capsules


def _from_file(store: VnfsStore, path: Path, root: Root, work: Path) -> NewKernel:
    from capsulekit.capsule.read import open_capsule, verify
    from provisioner.sitekey import trusted_here

    keys, revoked = trusted_here(store.paths)
    with open_capsule(path) as capsule:
        checked = verify(capsule, keys, revoked=revoked)
        told = checked.manifest
        _check_capsule(told, root, str(path))
        files = {}
        for name in _wanted(told):
            files[name] = work / name.replace("/", "-")
            with files[name].open("wb") as out:
                if capsule.copy_member(name, out) != checked.members[name].sha256:
                    raise CapsulekitError(f"{path} changed while it was read", hint="try again")
    return _from_capsule(store, told, files, root, work, str(path))


def _from_installed(store: VnfsStore, name: str, root: Root, work: Path) -> NewKernel:
    row = store.get(name)
    told, digests = store.manifest(row.name), store.digests(row.name)
    _check_capsule(told, root, row.name)
    files = {member: store.blob(digests[member]) for member in _wanted(told)}
    for member, blob in files.items():
        if not blob.is_file() or sha256_file(blob) != digests[member]:
            raise CapsulekitError(f"{member} of {row.name} is gone from the store, or damaged", hint="import it again")
    return _from_capsule(store, told, files, root, work, row.name)


def _check_capsule(told: Manifest, root: Root, where: str) -> None:
    if not same_arch(told.arch, root.arch):
        raise CapsulekitError(f"{where} is for {told.arch}, and the capsule is for {root.arch}")
    if all(layer.path != MODULES for layer in told.layers):
        raise CapsulekitError(f"{where} has no {MODULES}: it holds no kernel to take")


def _wanted(told: Manifest) -> list[str]:
    acls = [layer.acl for layer in told.layers if layer.path == MODULES and layer.acl is not None]
    return [IMAGE, INITRD, MODULES, *acls]


def _from_capsule(
    store: VnfsStore, told: Manifest, files: dict[str, Path], root: Root, work: Path, where: str
) -> NewKernel:
    layer = next(one for one in told.layers if one.path == MODULES)
    modules, acl = files[MODULES], files[layer.acl] if layer.acl is not None else None
    with view(store.paths, f"source-{work.name}", [Image(modules)]) as seen:
        theirs = next((p for p in ("usr/lib", "lib") if (seen / p / "modules" / told.kernel_release).is_dir()), None)
        if theirs is None:
            raise CapsulekitError(f"{where} holds no modules of its kernel {told.kernel_release}")
        if theirs != root.prefix:
            modules, layer, acl = *_moved(seen, theirs, told, layer, root, work), None
    return NewKernel(told.kernel_release, files[IMAGE], modules, layer, acl, files[INITRD], where)


def _moved(seen: Path, theirs: str, told: Manifest, layer: Layer, root: Root, work: Path) -> tuple[Path, Layer]:
    """The same modules where this root looks for them: one has a merged /usr, the other has not."""
    from capsulekit.kernel import write_modules

    folders = {f"{root.prefix}/modules/{told.kernel_release}": seen / theirs / "modules" / told.kernel_release}
    if (seen / theirs / "firmware").is_dir():
        folders[f"{root.prefix}/firmware"] = seen / theirs / "firmware"
    out = work / "modules.squashfs"
    unpacked = write_modules(out, folders, root.epoch, root.level)
    moved = replace(layer, size=out.stat().st_size, sha256=sha256_file(out), unpacked=unpacked, acl=None)
    return out, moved


__all__ = ["IMAGE", "INITRD", "MODULES", "NewKernel", "Root", "new_kernel", "same_arch"]
