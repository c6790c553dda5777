"""The kernel's NFS server: what of this master the nodes may mount (exports(5))."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid5

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import atomic_write
from capsulekit.run import run
from capsulekit.sitepaths import SitePaths
from provisioner.siteconf import SiteConfig
from provisioner.sitefiles import Change, block, outside_block

EXPORTS = Path("/etc/exports")
# Files of their own beside it (exports(5)): those of `serve`, one for each address that a master here has.
EXPORTS_D = Path("/etc/exports.d")
UNIT = "nfs-server"
AFTER = "To make it hold: exportfs -ra (or the same command with --reload)"

TWO_SERVERS = (
    'It can\'t share its port with nfs-ganesha, which serve starts for hybrid capsules: set nfs = "kernel" in site.toml'
)


@dataclass(frozen=True)
class Export:
    """A folder of this master; ``writable`` is for home folders and the like."""

    folder: Path
    writable: bool = False

    @property
    def options(self) -> str:
        """Its options. Owners are kept as they are: nodes are the site's own machines."""
        return (
            f"{'rw' if self.writable else 'ro'},no_root_squash,no_subtree_check,{'sync' if self.writable else 'async'}"
        )


def parse_export(text: str) -> Export:
    """FOLDER or FOLDER:rw. Raises UsageError for a folder that is not absolute, or can't stand in exports(5)."""
    folder, colon, mode = text.partition(":")
    if not folder.startswith("/") or mode not in ("", "ro", "rw") or (colon and not mode):
        raise UsageError(f"--export {text!r} is not FOLDER, FOLDER:ro or FOLDER:rw", hint="like /home:rw")
    if not folder.isprintable() or re.search(r'[\s#"\\]', folder):
        raise UsageError(f"the folder {folder!r} has characters that /etc/exports gives a meaning to")
    return Export(Path(folder), mode == "rw")


def public_folder(paths: SitePaths) -> Path:
    """What nodes mount of the site itself: network layers of hybrid capsules, which are public."""
    return paths.state / "nfs"


def changes(
    paths: SitePaths, site: SiteConfig, more: Sequence[Export] = (), target: Path = EXPORTS
) -> list[Change | None]:
    """Our block of ``target``: the site's public folder and ``more``, for the nodes' network only.

    Raises CapsulekitError when a line of somebody else's exports one of the folders already.
    """
    exports = [Export(public_folder(paths)), *more]
    names = [str(one.folder) for one in exports]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} would be exported twice")
    for number, line in outside_block(target):
        word = line.split("#")[0].split()[:1]
        if word and word[0].strip('"') in names:
            raise CapsulekitError(
                f"{target}:{number} exports {word[0]} already, and that line is not ours",
                hint="remove that line, or leave the folder out of --export",
            )
    lines = [f"{one.folder} {site.network}({one.options})" for one in exports]
    return [block(target, lines)]


def make_folder(paths: SitePaths) -> None:
    """Make the folder that is exported; exportfs refuses one that is not there."""
    public_folder(paths).mkdir(mode=0o755, parents=True, exist_ok=True)


def layer_line(folder: Path, clients: Sequence[str], name: str) -> str:
    """An exports(5) line for what nodes read of this master, by nobody, and only what everybody may read.

    ``name`` gives the file system its number, so that handles survive a restart and another mount: the 32 hex digits of
    a layer, or a word. Raises CapsulekitError for a folder that exports(5) can't hold.
    """
    if re.search(r'[\s#"\\]', str(folder)) or not str(folder).isprintable():
        raise CapsulekitError(f"exports(5) can't hold the path {str(folder)!r}", hint="move the state folder elsewhere")
    number = UUID(hex=name) if re.fullmatch(r"[0-9a-f]{32}", name) else uuid5(NAMESPACE_URL, f"capsulekit:{name}")
    options = f"ro,all_squash,no_subtree_check,sec=sys,fsid={number}"
    return f"{folder} " + " ".join(f"{client}({options})" for client in clients)


def export_layers(address: str, lines: Sequence[str], folder: Path = EXPORTS_D) -> None:
    """Have the kernel's server export these lines for the master of this address, and no others of its.

    What others export is not touched. Raises CapsulekitError when exportfs is missing or refuses.
    """
    file = folder / f"capsulekit-{address.replace(':', '_')}.exports"
    text = "".join(f"{line}\n" for line in ("# Made by capsulekit serve; changes are overwritten.", *lines))
    if not lines and not file.exists():
        return
    if package := kernel_missing():
        raise CapsulekitError(
            "exportfs is not installed; it is needed to export by the kernel's NFS server", hint=package
        )
    if lines:
        folder.mkdir(mode=0o755, exist_ok=True)
        atomic_write(file, text.encode())
    else:
        file.unlink()
    run(["exportfs", "-ra"], purpose="export by the kernel's NFS server", timeout=60)


def kernel_missing() -> str:
    """What to install for the kernel's server, or "" when it is there."""
    search = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return "" if shutil.which("exportfs", path=search) else "apt-get install nfs-kernel-server (RPM: nfs-utils)"
