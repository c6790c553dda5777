"""The site's hybridize lists, config/vnfs/NAME/hybridize, and the folders that no glob may take here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING

from initramfs_builder.tree import merged

from capsulekit.errors import CapsulekitError
from capsulekit.files import read_bounded
from capsulekit.rootfs.globs import anchored
from capsulekit.sitepaths import SitePaths
from provisioner.registry.model import InstalledCapsule

if TYPE_CHECKING:
    from provisioner.vnfs.generation import Generation
    from provisioner.vnfs.store import VnfsStore

FILE = "hybridize"
MEMBER = "hybridize"  # the author's own list, in the capsule
MAX_LIST = 1 << 20  # bytes
MOUNTS = "nfsmounts"


def wanted_globs(store: VnfsStore, base: Generation) -> tuple[str, ...]:
    """The globs that count for a capsule: the site's list for it, else its author's; each once, in their order.

    An empty site's list means nothing lies on the network. Raises CapsulekitError naming the line that is no glob.
    """
    file = list_file(store.paths, base.row)
    if file is not None:
        return read_list(file)
    if MEMBER in base.digests:
        # The author's member stays as it is, also where the site's list has replaced the manifest's.
        return parse_list(_blob(store, base.digests[MEMBER]), f"{base.row.name}: {MEMBER}")
    return base.manifest.hybridize


def same_globs(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether two lists mean the same: /usr/share/doc, /usr/share/doc/ and their order make no difference."""
    return {anchored(glob) for glob in one} == {anchored(glob) for glob in two}


def list_file(paths: SitePaths, row: InstalledCapsule) -> Path | None:
    """The site's list for a capsule, under its installed name or else its short one; None when there is none."""
    names = [row.name, row.name.removesuffix(f"-{row.version}.{row.arch}")]
    for name in dict.fromkeys(names):
        file = paths.config / "vnfs" / name / FILE
        if file.exists() or file.is_symlink():
            return file
    return None


def read_list(file: Path) -> tuple[str, ...]:
    """The globs of a list; raises CapsulekitError naming the line that is none."""
    data = read_bounded(file, MAX_LIST)
    if len(data) > MAX_LIST:
        raise CapsulekitError(f"{file} is longer than {MAX_LIST} bytes", hint="one path or glob a line")
    return parse_list(data, str(file))


def parse_list(data: bytes, where: str) -> tuple[str, ...]:
    """One path or glob a line, from the root, ``#`` begins a comment; raises CapsulekitError "WHERE:LINE: …"."""
    globs = []
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not text.isprintable():
            raise CapsulekitError(f"{where}:{number}: {text[:80]!a} holds what is no printable UTF-8")
        try:
            anchored(text)
        except CapsulekitError as wrong:
            raise CapsulekitError(f"{where}:{number}: {wrong.message}", hint=wrong.hint) from None
        globs.append(text)
    return tuple(dict.fromkeys(globs))


def taken_folders(paths: SitePaths, row: InstalledCapsule) -> Mapping[str, str]:
    """Folders whose files no glob may take, with the reason: the state folder, and what nodes mount by NFS.

    Keys are merged paths (see initramfs_builder.tree). Raises CapsulekitError when a file of nfsmounts can't be read.
    """
    found = {_folder(str(paths.state.absolute())): "it is the site's state folder, which no node has"}
    for file in _mount_files(paths, row):
        for folder in _mounted(file):
            found.setdefault(folder, f"nodes mount a file system there ({file})")
    return found


def _mount_files(paths: SitePaths, row: InstalledCapsule) -> Iterator[Path]:
    """Every file of nfsmounts' settings that may count for a node of this capsule."""
    home = paths.config / "modules" / MOUNTS
    short = row.name.removesuffix(f"-{row.version}.{row.arch}")
    places = [home / "all", home / "vnfs" / row.name, home / "vnfs" / short]
    places += [file for scope in ("group", "node") for file in sorted((home / scope).glob("*"))]
    yield from (file for file in dict.fromkeys(places) if file.is_file())


def _mounted(file: Path) -> Iterator[str]:
    """The folders of the lines ``SERVER:PATH FOLDER [OPTIONS]``; what is no such line is the module's to refuse."""
    for line in read_bounded(file, MAX_LIST).decode("utf-8", "replace").splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1 and (folder := _folder(words[1])):
            yield folder


def _folder(text: str) -> str:
    """A folder as globs and a root's paths are compared: /lib is /usr/lib, and no slash is twice."""
    return merged(normpath(text).strip("/"))


def _blob(store: VnfsStore, sha256: str) -> bytes:
    return read_bounded(store.blob(sha256), MAX_LIST)
